"""A model that the user loaded: its identity, and the weights of its down projections."""

import copy
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hq.errors import HQError
from hq.models.architectures import Architecture, architecture_of
from hq.models.norm_digest import norm_digest
from hq.neurons.neuron_set import LOADED_ORIGIN, ModelIdentity
from hq.precisions import PRECISIONS

_BITSANDBYTES = ("int8", "nf4", "fp4")


def loaded_identity(model: Any) -> ModelIdentity:
    """Name, shape and norm digest of a model in memory; the fingerprint of its files is unknown.

    Raises HQError for an unknown family, and for a model without a norm digest.
    """
    config = model.config.get_text_config()
    architecture = architecture_of(model.config)
    digest = _digest(model.get_decoder(), architecture, config.num_hidden_layers)
    name = Path(model.name_or_path).name or type(model).__name__
    if not digest:
        raise HQError(
            f"{name} cannot be recognised by its norms ({config.model_type}): pass "
            "model_identity=hq.models.checkpoint.identity(folder of its checkpoint)."
        )
    return ModelIdentity(
        name=name,
        fingerprint=LOADED_ORIGIN + digest,
        architecture=config.model_type,
        n_layers=config.num_hidden_layers,
        d_ff=architecture.width(config),
        kin=digest,
    )


def dense_weight(projection: nn.Module, where: str) -> Float[Tensor, "d_out d_in"]:
    """The dequantized weight of a projection that is dense or of bitsandbytes.

    Raises HQError, which names `where`, for other modules, of which norms would be a guess.
    """
    kind, weight = type(projection), getattr(projection, "weight", None)
    if kind in (nn.Linear, Conv1D) and type(weight) in (nn.Parameter, Tensor):
        assert isinstance(weight, Tensor)
        if not weight.is_meta:
            return weight.detach().T if kind is Conv1D else weight.detach()
    elif kind.__module__.startswith("bitsandbytes."):
        for precision in map(PRECISIONS.__getitem__, _BITSANDBYTES):
            if precision.is_precision_of(projection):
                return precision.dense(_as_loaded(projection))
    raise HQError(
        f"hq cannot read the weights of {kind.__module__}.{kind.__name__}, the down projection of "
        f"{where}: use dense weights that are not offloaded, or bitsandbytes, with adapters "
        "merged; open packed checkpoints with hq.backends.transformers.backend.TorchBackend."
    )


def _as_loaded(projection: Any) -> Any:
    """A copy of the projection before its first product, which repacks 4-bit codes on some CPUs.

    The block scales stay rounded to bfloat16, as the repacked scales are.
    """
    if not getattr(getattr(projection.weight, "quant_state", None), "packing_format_for_cpu", 0):
        return projection
    module = copy.deepcopy(projection)
    module.state_dict()  # bitsandbytes unpacks the codes in place when it saves them
    state = module.weight.quant_state
    if state.absmax.ndim == 2:  # still in the layout of the kernel: [block of a row, row]
        state.absmax = state.absmax.T.reshape(-1).float()
    return module


def _digest(decoder: nn.Module, architecture: Architecture, n_layers: int) -> str:
    """Norm digest of a decoder; empty if its norms are unknown or not in memory."""
    names = architecture.norms
    if names is None:
        return ""
    norms = {
        canonical: (weight.detach().float() + names.offset).cpu().numpy()
        for name, weight in decoder.named_parameters()
        if (canonical := names.canonical(name)) is not None and not weight.is_meta
    }
    ordered = list(names.ordered(n_layers))
    return norm_digest(norms[name] for name in ordered) if norms.keys() >= set(ordered) else ""
