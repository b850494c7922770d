"""The weights of experts: packed in a loaded model, packed or one by one in a checkpoint."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from hq.models.architectures import Architecture

Matrices = tuple[Tensor, Tensor, Tensor]  # gate and up [d_ff, d_model], down [d_model, d_ff]


def is_routed(module: nn.Module) -> bool:
    """Whether a module holds the routed experts of a layer, packed in 3-D parameters."""
    weight = getattr(module, "down_proj", None)
    return isinstance(weight, Tensor) and weight.ndim == 3


def routed_in(decoder: nn.Module) -> dict[str, Any]:
    """The routed experts of a model's layers, by name."""
    return {name: module for name, module in decoder.named_modules() if is_routed(module)}


def loaded_expert(routed: Any, expert: int) -> Matrices:
    """The matrices of one routed expert of a loaded model."""
    both, down = routed.gate_up_proj[expert], routed.down_proj[expert]
    if routed.is_transposed:
        both, down = both.T, down.T
    return *halves(both, interleaved=not routed.is_concatenated), down


def stored_expert(
    tensor: Callable[[str], Tensor], has: Callable[[str], bool], family: Architecture, expert: int
) -> Matrices:
    """The matrices of one routed expert of a checkpoint.

    `tensor` reads a tensor of the layer by its name inside the layer, and `has` says whether the
    checkpoint has it.
    """
    experts = family.experts
    assert experts is not None
    packed = f"{experts.block}.experts."
    if has(f"{packed}gate_up_proj"):
        both, down = (tensor(packed + name)[expert] for name in ("gate_up_proj", "down_proj"))
        if experts.transposed:
            both, down = both.T, down.T
        return *halves(both, experts.transposed), down
    prefix = experts.stored.format(expert)
    gate, up, down = (
        tensor(f"{prefix}{name}.weight") for name in (experts.gate, experts.up, experts.down)
    )
    return gate, up, down


def halves(
    both: Float[Tensor, "two_d_ff d_model"], interleaved: bool
) -> tuple[Float[Tensor, "d_ff d_model"], Float[Tensor, "d_ff d_model"]]:
    """Gate and up of a packed matrix: one after the other, or row by row."""
    if interleaved:
        return both[::2], both[1::2]
    gate, up = both.chunk(2)
    return gate, up
