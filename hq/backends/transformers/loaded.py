"""A model that the user loaded: its identity, the weights of its projections, and its backend."""

import copy
from pathlib import Path
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hq.backends.transformers.backend import TorchBackend
from hq.backends.transformers.experts import Mixture, verify_experts
from hq.errors import HQError
from hq.models.architectures import Architecture, architecture_of, down_projections
from hq.models.architectures.detection import verify_detection
from hq.models.auto import is_wrapper
from hq.models.expert_weights import routed_in
from hq.models.norm_digest import norm_digest
from hq.models.placement import device_of, in_memory, require_supported
from hq.neurons.neuron_set import LOADED_ORIGIN, ModelIdentity
from hq.precisions import PRECISIONS, Precision
from hq.precisions.bitsandbytes import FourBit, Int8
from hq.precisions.experts import experts_at

_BITSANDBYTES: tuple[Precision, ...] = (
    Int8(),
    *(FourBit(kind, double) for kind in ("nf4", "fp4") for double in (False, True)),
)
_TOKEN_BUDGET = 2048  # tokens a batch, as in TorchBackend


def loaded_identity(model: Any) -> ModelIdentity:
    """Name, shape and norm digest of a model in memory, of which no fingerprint is known.

    Raises HQError for an unknown family, and for a model without known norms.
    """
    config = model.config.get_text_config()
    architecture = architecture_of(model.config)
    digest = _norm_digest(model.get_decoder(), architecture, config.num_hidden_layers)
    name = Path(model.name_or_path).name or type(model).__name__
    if not digest:
        raise HQError(
            f"{name} cannot be recognised by its norms ({config.model_type}): pass its identity, "
            "model_identity=hq.models.checkpoint.checkpoint_identity(folder of its checkpoint)."
        )
    return ModelIdentity.of(
        name=name,
        fingerprint=LOADED_ORIGIN + digest,
        architecture=config.model_type,
        space=architecture.space(config),
        norm_digest=digest,
    )


def dense_weight(projection: nn.Module, where: str) -> Float[Tensor, "d_out d_in"]:
    """The dequantized weight of a projection that is dense or of bitsandbytes.

    Raises HQError, which names `where`, for other modules, of which norms would be a guess.
    """
    kind = type(projection)
    with in_memory(projection):
        weight = getattr(projection, "weight", None)
    if kind in (nn.Linear, Conv1D) and type(weight) in (nn.Parameter, Tensor):
        assert isinstance(weight, Tensor)
        if not weight.is_meta:
            return weight.detach().T if kind is Conv1D else weight.detach()
    elif precision := _bitsandbytes_precision(projection):
        return precision.dense(_as_loaded(projection))
    raise HQError(
        f"hq cannot read the weights of {kind.__module__}.{kind.__name__}, the down projection of "
        f"{where}: use dense weights, or bitsandbytes, with adapters "
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


def _norm_digest(decoder: nn.Module, architecture: Architecture, n_layers: int) -> str:
    """Norm digest of a decoder; empty if no norms are known, or one is not in memory."""
    names = architecture.norms
    if names is None:
        return ""
    norms = {}
    for path, module in decoder.named_modules():
        for name in dict(module.named_parameters(recurse=False)):
            canonical = names.canonical(f"{path}.{name}".removeprefix("."))
            if canonical is not None:
                with in_memory(module):
                    weight = module.get_parameter(name).detach()
                if not weight.is_meta:
                    norms[canonical] = (weight.float() + names.offset).cpu().numpy()
    wanted = list(names.ordered(n_layers))
    return norm_digest(norms[name] for name in wanted) if norms.keys() >= set(wanted) else ""


class LoadedBackend(TorchBackend):
    """A transformers model that the user loaded: dense, or quantized by bitsandbytes.

    The model is used as it is: nothing is moved, and `close` only drops the reference. `precision`
    is bitsandbytes' (int8, nf4 or fp4), or the type of the first down projection's weights. A
    device map may distribute its layers over GPUs, the CPU and a disk.

    `model_identity` names the model if its norms cannot:
    hq.models.checkpoint.checkpoint_identity(folder).

    Raises HQError for a model without known neurons, in training mode, on Apple's GPU, or with
    projections that hq cannot dequantize.
    """

    def __init__(self, model: Any, model_identity: ModelIdentity | None = None) -> None:
        self._family = architecture_of(model.config)
        self.identity = model_identity or loaded_identity(model)
        self.model, self.decoder = model, model.get_decoder()
        self.downs = down_projections(self.decoder, self._family)
        if model.training:
            raise HQError(
                f"{self.identity.name} is in training mode, where dropout changes its activations: "
                "call model.eval() first."
            )
        self._precision = cast(Precision, _HeldPrecision())
        # Checked first, because this error names the layer.
        weights = [_a_weight(down, f"layer {i}") for i, down in enumerate(self.downs)]
        self.device = device_of(model.get_input_embeddings())
        require_supported(self.device)
        self.token_budget = _TOKEN_BUDGET
        _require_one_precision(self.decoder, self.identity.name)
        held = _precision_of(self.downs[0])
        self.precision = held.name if held is not _DENSE else str(weights[0].dtype).split(".")[-1]
        self.audit()
        verify_experts(self.downs)
        if self._family.detected or is_wrapper(model):
            verify_detection(model, self.downs, self._dense, self.device)

    def _dense(self, projection: nn.Module) -> Float[Tensor, "d_out d_in"]:
        return dense_weight(projection, "this model")


def _a_weight(down: nn.Module, where: str) -> Tensor:
    """A weight of a layer. Raises HQError as `dense_weight` does."""
    mixture = Mixture.of(down)
    return dense_weight(down, where) if mixture is None else mixture.routed.down_proj.detach()


def _require_one_precision(decoder: nn.Module, name: str) -> None:
    """Raises HQError if bitsandbytes quantized a model without its experts."""
    routed = routed_in(decoder)
    held = {p.name for m in decoder.modules() if (p := _bitsandbytes_precision(m))}
    if not (routed and held):
        return
    count = sum(m.gate_up_proj.numel() + m.down_proj.numel() for m in routed.values())
    raise HQError(
        f"{name} is quantized by bitsandbytes ({', '.join(sorted(held))}) without its experts, "
        f"{count:,} weights that are still {next(iter(routed.values())).down_proj.dtype}: results "
        "would be those of no precision; load it without quantization."
    )


_DENSE = PRECISIONS["fp16"]


def _precision_of(module: nn.Module) -> Precision:
    """The precision of bitsandbytes that holds a module, or the dense one."""
    return _bitsandbytes_precision(module) or _DENSE


def _bitsandbytes_precision(module: nn.Module) -> Precision | None:
    """The precision of bitsandbytes that holds a module, if one does."""
    if not type(module).__module__.startswith("bitsandbytes."):
        return None
    return next((held for held in _BITSANDBYTES if held.is_precision_of(module)), None)


class _HeldPrecision:
    """What a backend asks of its precision, answered by the one that holds each projection."""

    def is_precision_of(self, module: nn.Module) -> bool:
        """Whether the projection can be read."""
        return _precision_of(module).is_precision_of(module)

    def stored_experts(self, module: nn.Module) -> Any:
        """How a layer's routed experts are stored."""
        return experts_at(_DENSE, module)

    def dense(self, module: nn.Module) -> Tensor:
        """The dequantized weight, in the module's own layout."""
        return _precision_of(module).dense(module)

    def stored(self, module: nn.Module) -> Any:
        """How the weight is stored."""
        return _precision_of(module).stored(module)
