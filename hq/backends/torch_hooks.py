"""The one hook point in torch: the input of each down projection, read or scaled.

Handles are owned by context managers, so no hook outlives its use.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hq.backends.base import check_factors
from hq.cett import Measure, span_means, whole
from hq.errors import HQError


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
        product = _product(module, output)
        self._means[:, :, :, layer] = span_means(
            args[0].reshape(batch, seq, -1),  # OPT flattens batch and sequence
            product.reshape(batch, seq, -1),
            self._norms[layer],
            self._weights,
            self._measures,
        )


@dataclass(frozen=True, slots=True)
class Watched:
    """One layer of which some neurons are read."""

    layer: int
    down: nn.Module
    norms: Float[Tensor, " d_ff"]  # on the device that computes
    indices: Int[Tensor, " k"]


class ShareHooks:
    """Reads the CETT of some neurons at every token, and hooks no layer that has none of them.

    Hooks are on the model only inside `with`. A pass leaves |h_i| of these neurons and their
    layers' wholes, and little is done until `collect`, as a hook stands in the way of each layer.
    """

    def __init__(self, layers: Sequence[Watched], measure: Measure) -> None:
        self._layers = layers
        self._measure = measure
        self._stack = ExitStack()
        self._passes: list[list[Float[Tensor, "token k_plus_1"]]] = []
        self.reading = True  # may be switched off for tokens that nobody asks for
        counts = np.array([len(watched.indices) for watched in layers])
        ends = np.cumsum(counts + 1) - 1  # where each layer's whole comes after its neurons
        self._wholes = np.repeat(ends, counts)
        self._values = np.delete(np.arange(int(counts.sum()) + len(layers)), ends)
        self._norms = np.concatenate([w.norms[w.indices].cpu().numpy() for w in layers])

    def __enter__(self) -> "ShareHooks":
        self._forget()
        for watched, passes in zip(self._layers, self._passes, strict=True):
            hook = watched.down.register_forward_hook(partial(self._read, watched, passes))
            self._stack.enter_context(_removing(hook))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._forget()

    def collect(self, batch: int) -> Float[np.ndarray, "batch seq all_k"]:
        """What the passes since the last call left, layer by layer; then it is forgotten.

        Raises HQError for a layer that was not met.
        """
        for watched, passes in zip(self._layers, self._passes, strict=True):
            if not passes:
                raise HQError(
                    f"The down projection of layer {watched.layer} was not met in this forward "
                    "pass: watch the model itself, before it is compiled."
                )
        device = self._passes[0][0].device
        tensors = [
            torch.cat([part.reshape(batch, -1, part.shape[-1]) for part in passes], dim=1)
            for passes in self._passes
        ]
        found = torch.cat([tensor.to(device) for tensor in tensors], dim=-1).cpu().numpy()
        for passes in self._passes:
            passes.clear()
        values, wholes = found[..., self._values], found[..., self._wholes]
        shares = np.zeros_like(values)
        with np.errstate(invalid="ignore"):  # what is not finite is for the reader to refuse
            np.divide(values * self._norms, wholes, out=shares, where=wholes != 0)
        return shares

    def _forget(self) -> None:
        self._passes = [[] for _ in self._layers]

    def _read(
        self,
        watched: Watched,
        passes: list[Float[Tensor, "token k_plus_1"]],
        module: nn.Module,
        args: tuple[Tensor],
        output: Tensor,
    ) -> None:
        if not self.reading:
            return
        magnitude = args[0].flatten(0, -2).abs().float()
        product = _product(module, output) if self._measure == "output" else output
        wholes = whole(self._measure, magnitude, product.flatten(0, -2), watched.norms)
        passes.append(torch.cat([magnitude[:, watched.indices], wholes[:, None]], dim=1))


def _product(down: nn.Module, output: Tensor) -> Tensor:
    """W_down · h, without the bias."""
    bias = getattr(down, "bias", None)
    return output if bias is None else output - bias


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
