"""A model that the user loaded: who it is, and what its down projections hold."""

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
    """Name, shape and norm digest of a model in memory, whose files' fingerprint is not known.

    Raises HQError for an unknown family, or a model that has no norms to be recognised by.
    """
    config = model.config.get_text_config()
    architecture = architecture_of(model.config)
    found = _kin(model.get_decoder(), architecture, config.num_hidden_layers)
    name = Path(model.name_or_path).name or type(model).__name__
    if not found:
        raise HQError(
            f"{name} cannot be recognised by its norms ({config.model_type}): say who it is, "
            "model_identity=hq.models.checkpoint.checkpoint_identity(the folder of its checkpoint)."
        )
    return ModelIdentity(
        name=name,
        fingerprint=LOADED_ORIGIN + found,
        architecture=config.model_type,
        n_layers=config.num_hidden_layers,
        d_ff=architecture.width(config),
        kin=found,
    )


def dense_weight(projection: nn.Module, where: str) -> Float[Tensor, "d_out d_in"]:
    """What a projection multiplies by, dequantized: dense ones, and those of bitsandbytes.

    Raises HQError, with `where` in it, for any other kind: its norms would be a guess.
    """
    kind, weight = type(projection), getattr(projection, "weight", None)
    if kind in (nn.Linear, Conv1D) and type(weight) in (nn.Parameter, Tensor):
        assert isinstance(weight, Tensor)
        if not weight.is_meta:
            return weight.detach().T if kind is Conv1D else weight.detach()
    elif kind.__module__.startswith("bitsandbytes."):
        for precision in map(PRECISIONS.__getitem__, _BITSANDBYTES):
            if precision.holds(projection):
                return precision.dense(_as_loaded(projection))
    raise HQError(
        f"The down projection of {where} is a {kind.__module__}.{kind.__name__} whose weights hq "
        "cannot read: use dense weights that are not offloaded, or bitsandbytes', with adapters "
        "merged; packed checkpoints open with hq.backends.transformers.backend.TorchBackend."
    )


def _as_loaded(projection: Any) -> Any:
    """The projection as it was before its first product, which repacks 4-bit codes on some CPUs.

    The block scales stay rounded to bfloat16, as the repacked ones are.
    """
    if not getattr(getattr(projection.weight, "quant_state", None), "packing_format_for_cpu", 0):
        return projection
    module = copy.deepcopy(projection)
    module.state_dict()  # bitsandbytes unpacks the codes of what it saves, in place
    state = module.weight.quant_state
    if state.absmax.ndim == 2:  # still as the kernel wants them: [block of a row, row]
        state.absmax = state.absmax.T.reshape(-1).float()
    return module


def _kin(decoder: nn.Module, architecture: Architecture, n_layers: int) -> str:
    """Norm digest of a decoder; empty where no norms are known, or one is not in memory."""
    names = architecture.norms
    if names is None:
        return ""
    norms = {
        canonical: (weight.detach().float() + names.offset).cpu().numpy()
        for name, weight in decoder.named_parameters()
        if (canonical := names.canonical(name)) is not None and not weight.is_meta
    }
    wanted = list(names.ordered(n_layers))
    return norm_digest(norms[name] for name in wanted) if norms.keys() >= set(wanted) else ""
