"""Hooks on each layer's FFN, which read or scale its activations.

Context managers own the handles, so no hook outlives its use.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hq.backends.transformers.activations import Activations, observed, removing
from hq.backends.transformers.eager import anything_compiled, eager
from hq.backends.transformers.experts import Mixture, scaled_experts
from hq.errors import HQError
from hq.models.placement import PerDevice
from hq.neurons.cett import Measure, require_measures
from hq.neurons.factors import Factors, check_factors
from hq.neurons.space import NO_EXPERT, NeuronSpace


class DownHooks:
    """Read h at every layer of a forward pass, and keep only its span means.

    `expect` sets the token weights before a pass, and `collect` returns the means after it. Hooks
    are on the model only inside `with`, which may be entered repeatedly.
    """

    def __init__(
        self,
        downs: Sequence[nn.Module],
        norms: Sequence[Float[Tensor, " d_ff"]],
        measures: tuple[Measure, ...],
    ) -> None:
        self._downs = downs
        self._norms = norms
        require_measures(measures)
        self._measures = measures
        self._stack = ExitStack()
        self._weights = PerDevice(torch.empty(0))  # [batch, span, seq]
        self._slices = NeuronSpace.of_widths([len(of_layer) for of_layer in norms]).slices
        self._means: Float[Tensor, "batch measure span p"] = torch.empty(0)
        self._met: list[int] = []  # layers of this pass

    def __enter__(self) -> "DownHooks":
        for layer, down in enumerate(self._downs):
            self._stack.enter_context(observed(down, partial(self._read, layer)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def expect(self, weights: Float[Tensor, "batch span seq"]) -> None:
        """Set the weight of each token of the next pass in each span."""
        batch, spans, _ = weights.shape
        shape = (batch, len(self._measures), spans, self._slices[-1].stop)
        self._weights = PerDevice(weights)
        self._means = torch.empty(shape, device=weights.device)
        self._met = []

    def collect(self) -> Float[Tensor, "batch measure span p"]:
        """The means of the pass, which are then dropped.

        Raises HQError unless the pass reached every layer exactly once.
        """
        for layer in range(len(self._downs)):
            require_met(layer, self._met.count(layer))
        means, self._means = self._means, torch.empty(0)
        return means

    def _read(self, layer: int, activations: Activations) -> None:
        self._met.append(layer)
        norms = self._norms[layer]
        weights = self._weights.on(norms.device)
        means = activations.span_means(norms, weights, self._measures)
        self._means[..., self._slices[layer]] = means


@dataclass(frozen=True, slots=True)
class Watched:
    """A layer of which some neurons are read; indices are over all experts of the layer."""

    layer: int
    down: nn.Module  # its down projection, or its block of experts
    norms: Float[Tensor, " width"]  # on the device of the computation
    indices: Int[Tensor, " k"]

    @classmethod
    def of(
        cls,
        neurons: Int[np.ndarray, " k"],
        space: NeuronSpace,
        downs: Sequence[nn.Module],
        norms: Callable[[int], Float[Tensor, " width"]],
    ) -> list["Watched"]:
        """The layers of these neurons (flat indices, ascending)."""
        layers = space.locate(neurons).layer
        found = []
        for layer in np.unique(layers).tolist():
            inside = neurons[layers == layer] - space.layer_slices[layer].start
            of_layer = norms(layer)
            indices = torch.from_numpy(inside).to(of_layer.device)
            found.append(cls(layer, downs[layer], of_layer, indices))
        return found


class ShareHooks:
    """Read the CETT of some neurons at every token, with hooks on the layers of these neurons only.

    Hooks are on the model only inside `with`. A pass stores |h_i| of these neurons and the
    denominators of their layers; `collect` computes the rest, as hooks delay their layer.
    """

    def __init__(self, layers: Sequence[Watched], measure: Measure) -> None:
        self._layers = layers
        self._measure = measure
        self._stack = ExitStack()
        self._passes: list[_Passes] = []
        self.reading = True  # False: tokens are counted, and their CETT is not read
        counts = np.array([len(watched.indices) for watched in layers])
        ends = np.cumsum(counts + 1) - 1  # the denominator of a layer follows its neurons
        self._denominators = np.repeat(ends, counts)
        self._values = np.delete(np.arange(int(counts.sum()) + len(layers)), ends)
        self._norms = np.concatenate([w.norms[w.indices].cpu().numpy() for w in layers])

    def __enter__(self) -> "ShareHooks":
        self._passes = [_Passes() for _ in self._layers]
        for watched, passes in zip(self._layers, self._passes, strict=True):
            hook = observed(watched.down, partial(self._read, watched, passes))
            self._stack.enter_context(hook)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.forget()

    def passes(self) -> list[int]:
        """Tokens of all rows in each pass since the last `collect` or `forget`, read or not.

        Raises HQError if a pass did not reach a layer.
        """
        counts = [passes.tokens for passes in self._passes]
        for watched, tokens in zip(self._layers, counts, strict=True):
            require_met(watched.layer, len(tokens), max(map(len, (*counts, [0]))))
        return counts[0]

    def collect(self, batch: int) -> Float[np.ndarray, "batch seq all_k"]:
        """CETT at the tokens of the passes that were read, which are then dropped."""
        device = self._passes[0].read[0].device
        tensors = [
            torch.cat([part.reshape(batch, -1, part.shape[-1]) for part in passes.read], dim=1)
            for passes in self._passes
        ]
        columns = torch.cat([tensor.to(device) for tensor in tensors], dim=-1).cpu().numpy()
        self.forget()
        values, denominators = columns[..., self._values], columns[..., self._denominators]
        shares = np.zeros_like(values)
        with np.errstate(invalid="ignore"):  # the caller rejects values that are not finite
            np.divide(values * self._norms, denominators, out=shares, where=denominators != 0)
        return shares

    def forget(self) -> None:
        """Drop the values of all passes."""
        for passes in self._passes:
            passes.tokens.clear()
            passes.read.clear()

    def _read(self, watched: Watched, passes: "_Passes", activations: Activations) -> None:
        passes.tokens.append(activations.tokens)
        if self.reading:
            values = activations.chosen(watched.indices, watched.norms, self._measure)
            passes.read.append(values)


@dataclass(frozen=True, slots=True)
class _Passes:
    """Values of forward passes at one layer."""

    tokens: list[int] = field(default_factory=list)  # of all rows, one entry per pass
    read: list[Float[Tensor, "token k_plus_1"]] = field(default_factory=list)


def require_met(layer: int, times: int, expected: int = 1) -> None:
    """Raises HQError unless the hook of a layer was called once per forward pass."""
    if times != expected:
        raise HQError(
            f"The down projection of layer {layer} was "
            f"{f'called {times} times, not {expected},' if times else 'not called'} in this "
            "forward pass: run one pass at a time, on the model without compilation or kernels "
            "that replace its FFN."
        )


_SCALES: WeakKeyDictionary[nn.Module, tuple[object, ...]] = WeakKeyDictionary()


def scales_of(decoder: nn.Module) -> tuple[object, ...]:
    """The `scaled` contexts that act on a decoder now; cached keys and values depend on them."""
    return _SCALES.get(decoder, ())


@contextmanager
def _counted(decoder: nn.Module) -> Iterator[None]:
    mark = object()
    _SCALES[decoder] = (*scales_of(decoder), mark)
    try:
        yield
    finally:
        _SCALES[decoder] = tuple(other for other in scales_of(decoder) if other is not mark)


@contextmanager
def scaled(
    model: Any,
    downs: Sequence[nn.Module],
    factors: Factors,
    space: NeuronSpace,
) -> Iterator[None]:
    """Scale chosen coordinates of h while the context lasts; weights do not change.

    Raises HQError for a neuron that the model lacks, for an α that is negative or not finite, and
    for a model that does not call hooks: on entry if it is compiled, after a forward pass that did
    not reach a scaled layer, and at the end if code that was compiled earlier ran instead.
    """
    check_factors(factors, space)
    by_layer: dict[int, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for (layer, *expert, index), alpha in factors.items():
        by_layer[layer][expert[0] if expert else NO_EXPERT][index] = alpha
    if not by_layer:
        yield
        return
    met: set[int] = set()

    def check(*_: object) -> None:
        for layer in by_layer:
            require_met(layer, int(layer in met))

    with ExitStack() as stack:
        stack.enter_context(eager(model, [downs[layer] for layer in by_layer]))
        for layer, of_layer in by_layer.items():
            chosen = {
                expert: (
                    torch.tensor(list(alphas)),
                    torch.tensor(list(alphas.values()), dtype=torch.float32),
                )
                for expert, alphas in of_layer.items()
            }
            stack.enter_context(_scaled_layer(downs[layer], chosen, partial(met.add, layer)))
        decoder = model.get_decoder()
        stack.enter_context(removing(decoder.register_forward_hook(check)))
        stack.enter_context(_counted(decoder))
        yield
        if not met and anything_compiled():
            raise HQError(
                "Nothing was scaled: no forward pass of the model itself ran, and code that was "
                "compiled earlier does not call hooks. Run the model that was given, uncompiled."
            )


@contextmanager
def _scaled_layer(
    module: nn.Module, chosen: dict[int, tuple[Tensor, Tensor]], meet: Callable[[], None]
) -> Iterator[None]:
    """Scale neurons, by expert, of one layer: indices inside the expert, and α."""
    mixture = Mixture.of(module)
    with ExitStack() as stack:
        if mixture is not None:
            shared = chosen.pop(len(mixture.routed.down_proj), None)
            if chosen:
                stack.enter_context(scaled_experts(mixture, chosen, meet))
            chosen = {} if shared is None else {NO_EXPERT: shared}
            module = module if shared is None else mixture.shared.down_proj
        for indices, alphas in chosen.values():
            hook = _Scale(indices, alphas, meet)
            stack.enter_context(removing(module.register_forward_pre_hook(hook)))
        yield


class _Scale:
    """A hook that multiplies h by one factor per neuron: α, or 1, which changes no bit.

    The factors are copied to the device of h at the first pass only.
    """

    def __init__(self, indices: Tensor, alphas: Tensor, meet: Callable[[], None]) -> None:
        self._indices, self._alphas, self._meet = indices, alphas, meet
        self._factors: PerDevice | None = None

    def __call__(self, _: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        self._meet()
        (h,) = args
        if self._factors is None:
            with torch.inference_mode(False):  # passes inside the context may have gradients
                factors = torch.ones(h.shape[-1])
                factors[self._indices] = self._alphas
            self._factors = PerDevice(factors)
        return (h * self._factors.on(h.device, h.dtype),)
