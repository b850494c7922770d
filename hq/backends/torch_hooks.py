"""The one hook point in torch: the input of each down projection, read or scaled.

Handles are owned by context managers, so no hook outlives its use.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hq.backends.base import check_factors
from hq.cett import Measure, span_means


class DownHooks:
    """Reads h at every layer of a forward pass and keeps only its span means.

    `expect` takes the token weights of a pass before it, `collect` gives its means after it.
    Hooks are on the model only inside `with`, which may be entered again and again.
    """

    def __init__(
        self,
        downs: Sequence[nn.Module],
        norms: Sequence[Float[Tensor, " d_ff"]],
        measures: tuple[Measure, ...],
    ) -> None:
        self._downs = downs
        self._norms = norms
        self._measures = measures
        self._stack = ExitStack()
        self._weights: Float[Tensor, "batch span seq"] = torch.empty(0)
        self._means: Float[Tensor, "batch measure span layer d_ff"] = torch.empty(0)

    def __enter__(self) -> "DownHooks":
        for layer, down in enumerate(self._downs):
            self._stack.enter_context(
                _removing(down.register_forward_hook(partial(self._read, layer)))
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def expect(self, weights: Float[Tensor, "batch span seq"]) -> None:
        """The weight that each token of the next pass has in each span."""
        batch, spans, _ = weights.shape
        shape = (batch, len(self._measures), spans, len(self._downs), len(self._norms[0]))
        self._weights = weights
        self._means = torch.empty(shape, device=weights.device)

    def collect(self) -> Float[Tensor, "batch measure span layer d_ff"]:
        """What the pass left, which is then forgotten."""
        means, self._means = self._means, torch.empty(0)
        return means

    def _read(self, layer: int, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        batch, _, seq = self._weights.shape
        bias = getattr(module, "bias", None)
        product = output if bias is None else output - bias
        self._means[:, :, :, layer] = span_means(
            args[0].reshape(batch, seq, -1),  # OPT flattens batch and sequence
            product.reshape(batch, seq, -1),
            self._norms[layer],
            self._weights,
            self._measures,
        )


@contextmanager
def scaled(
    downs: Sequence[nn.Module], factors: Mapping[tuple[int, int], float], d_ff: int
) -> Iterator[None]:
    """Scales chosen coordinates of h while the context lasts; weights are never touched.

    Raises HQError for a neuron that the model does not have, or an α that is negative or not a
    number.
    """
    check_factors(factors, len(downs), d_ff)
    by_layer: dict[int, dict[int, float]] = defaultdict(dict)
    for (layer, index), alpha in factors.items():
        by_layer[layer][index] = alpha
    with ExitStack() as stack:
        for layer, chosen in by_layer.items():
            hook = partial(_scale, torch.tensor(list(chosen)), torch.tensor(list(chosen.values())))
            stack.enter_context(_removing(downs[layer].register_forward_pre_hook(hook)))
        yield


def _scale(indices: Tensor, alphas: Tensor, _: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    h = args[0].clone()
    h[..., indices.to(h.device)] *= alphas.to(h.device, h.dtype)
    return (h,)


@contextmanager
def _removing(handle: Any) -> Iterator[None]:
    """A hook handle as a context manager."""
    try:
        yield
    finally:
        handle.remove()
