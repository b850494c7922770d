"""The activations of one layer in a forward pass: of a dense FFN, or of a mixture of experts.

In a mixture, the activation of neuron i of expert e is g_e · h_i, with the routing weight g_e; it
is zero at tokens that are not routed to the expert.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hq.backends.transformers.experts import Mixture, Routing
from hq.models.placement import bias_of
from hq.neurons.cett import Measure, column_norms, denominator, output_norm, span_means


class Activations(Protocol):
    """What one layer computed in one forward pass."""

    @property
    def tokens(self) -> int:
        """Number of tokens of all rows."""
        ...

    def span_means(
        self,
        norms: Float[Tensor, " width"],
        weights: Float[Tensor, "batch span seq"],
        measures: tuple[Measure, ...],
    ) -> Float[Tensor, "batch measure span width"]:
        """As `hq.neurons.cett.span_means`, of all neurons of the layer."""
        ...

    def chosen(
        self, indices: Int[Tensor, " k"], norms: Float[Tensor, " width"], measure: Measure
    ) -> Float[Tensor, "token k_plus_1"]:
        """|activation| of some neurons of the layer, and the denominator of the measure."""
        ...


@dataclass(frozen=True, slots=True)
class DenseActivations:
    """The input and output of a down projection."""

    down: nn.Module
    h: Tensor  # OPT flattens batch and sequence
    output: Tensor

    @property
    def tokens(self) -> int:
        """Number of tokens of all rows."""
        return self.h.shape[:-1].numel()

    def span_means(
        self,
        norms: Float[Tensor, " width"],
        weights: Float[Tensor, "batch span seq"],
        measures: tuple[Measure, ...],
    ) -> Float[Tensor, "batch measure span width"]:
        """As `hq.neurons.cett.span_means`."""
        batch, _, seq = weights.shape
        product = _product(self.down, self.output)
        return span_means(
            self.h.reshape(batch, seq, -1),
            product.reshape(batch, seq, -1),
            norms,
            weights,
            measures,
        )

    def chosen(
        self, indices: Int[Tensor, " k"], norms: Float[Tensor, " width"], measure: Measure
    ) -> Float[Tensor, "token k_plus_1"]:
        """|h_i| of some neurons, and the denominator of the measure."""
        magnitude = self.h.flatten(0, -2).abs().float()
        product = _product(self.down, self.output) if measure == "output" else self.output
        of_layer = denominator(measure, magnitude, product.flatten(0, -2), norms)
        return torch.cat([magnitude[:, indices], of_layer[:, None]], dim=1)


@dataclass(frozen=True, slots=True)
class RoutedActivations:
    """The inputs of a layer's experts and the output of the whole mixture."""

    mixture: Mixture
    routing: Routing
    shared: tuple[Tensor, Tensor] | None  # h and g of the shared expert
    output: Tensor

    @property
    def tokens(self) -> int:
        """Number of tokens of all rows."""
        return len(self.routing.x)

    def span_means(
        self,
        norms: Float[Tensor, " width"],
        weights: Float[Tensor, "batch span seq"],
        measures: tuple[Measure, ...],
    ) -> Float[Tensor, "batch measure span width"]:
        """As `hq.neurons.cett.span_means`, over all experts; only tokens with a weight are read."""
        batch, spans, seq = weights.shape
        read = (weights != 0).any(dim=1).flatten()
        blocks = list(self._blocks(read))
        stacked = torch.cat(
            [
                weights / d.masked_fill(d == 0, torch.inf).reshape(batch, 1, seq)
                for d in (self._denominator(m, blocks, norms) for m in measures)
            ],
            dim=1,
        )
        by_token = stacked.transpose(0, 1).flatten(1)  # [measure·span, token]
        rows = torch.arange(batch, device=weights.device)[:, None]
        sums = torch.zeros(batch, len(by_token), len(norms), device=weights.device)
        for columns, tokens, magnitude in blocks:
            of_row = (tokens // seq == rows).float()  # [batch, n]
            folded = of_row[:, None] * by_token[:, tokens]
            products = folded.flatten(0, 1) @ magnitude
            sums[..., columns] = products.reshape(batch, len(by_token), -1)
        return sums.mul_(norms).reshape(batch, len(measures), spans, -1)

    def chosen(
        self, indices: Int[Tensor, " k"], norms: Float[Tensor, " width"], measure: Measure
    ) -> Float[Tensor, "token k_plus_1"]:
        """|g · h_i| of some neurons of the layer, and the denominator of the measure."""
        found = torch.zeros(self.tokens, len(indices) + 1, device=norms.device)
        every = torch.ones(self.tokens, dtype=torch.bool, device=norms.device)
        needs_all = measure == "sum"
        blocks = list(self._blocks(every, None if needs_all else indices))
        for columns, tokens, magnitude in blocks:
            inside = torch.where((indices >= columns.start) & (indices < columns.stop))[0]
            if len(inside):
                own = indices[inside] - columns.start if needs_all else slice(None)
                found[tokens[:, None], inside] = magnitude[:, own]
        found[:, -1] = self._denominator(measure, blocks if needs_all else [], norms)
        return found

    def _blocks(
        self, read: Bool[Tensor, " token"], indices: Int[Tensor, " k"] | None = None
    ) -> Iterator[tuple[slice, Int[Tensor, " n"], Float[Tensor, "n width"]]]:
        """(neurons of the layer, tokens, |g · h|) of each expert with tokens that are read.

        With `indices`, only of these neurons, in their order, and of the experts that have some.
        """
        slices = self.mixture.slices
        routed = len(slices) - (self.shared is not None)
        for expert, columns in enumerate(slices):
            rows = None
            if indices is not None:
                rows = indices[(indices >= columns.start) & (indices < columns.stop)]
                rows = rows - columns.start
                if not len(rows):
                    continue
            if expert < routed:
                tokens, weights = self.routing.to(expert)
                kept = read[tokens]
                tokens, weights = tokens[kept], weights[kept]
                if not len(tokens):
                    continue
                h = self.mixture.h(self.routing.x[tokens], expert, rows)
            else:
                assert self.shared is not None
                tokens = torch.where(read)[0]
                h, weights = (part[tokens] for part in self.shared)
                h = h if rows is None else h[:, rows]
            yield columns, tokens, (h.float() * weights.float()[:, None]).abs()

    def _denominator(
        self,
        measure: Measure,
        blocks: Sequence[tuple[slice, Int[Tensor, " n"], Float[Tensor, "n width"]]],
        norms: Float[Tensor, " width"],
    ) -> Float[Tensor, " token"]:
        """The denominator of a measure at each token; zero at tokens that no block has."""
        if measure == "contribution":
            return torch.ones(self.tokens, device=norms.device)
        if measure == "output":
            return output_norm(self.mixture.output(self.routing, self.output))
        total = torch.zeros(self.tokens, device=norms.device)
        for columns, tokens, magnitude in blocks:
            total.index_add_(0, tokens, magnitude @ norms[columns])
        return total


@contextmanager
def observed(module: nn.Module, read: Callable[[Activations], None]) -> Iterator[None]:
    """Call `read` with the activations of each forward pass of a layer, while the context lasts.

    `module` is the layer's down projection, or its block of experts.
    """
    mixture = Mixture.of(module)
    with ExitStack() as hooks:
        if mixture is None:

            def dense(down: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
                read(DenseActivations(down, args[0], output))

            hooks.enter_context(removing(module.register_forward_hook(dense)))
        else:
            for handle in _of_mixture(mixture, read):
                hooks.enter_context(removing(handle))
        yield


def _of_mixture(mixture: Mixture, read: Callable[[Activations], None]) -> list[Any]:
    """Hooks on the parts of a mixture; that of the block comes last in a forward pass."""
    parts: dict[str, Any] = {}

    def keep_routing(_: nn.Module, args: tuple[Any, ...], __: Tensor) -> None:
        parts["routing"] = Routing.of(args)

    def keep_shared(_: nn.Module, args: tuple[Tensor], __: Tensor) -> None:
        parts["shared"] = args[0].flatten(0, -2)

    def keep_gate(_: nn.Module, __: Any, output: Tensor) -> None:
        parts["gate"] = output.flatten().sigmoid()

    def finish(_: nn.Module, __: Any, output: Any) -> None:
        y = output[0] if isinstance(output, tuple) else output
        shared = None
        if mixture.shared is not None:
            h = parts["shared"]
            shared = h, parts["gate"] if "gate" in parts else torch.ones_like(h[:, 0])
        read(RoutedActivations(mixture, parts["routing"], shared, y))
        parts.clear()

    handles = [mixture.routed.register_forward_hook(keep_routing)]
    if mixture.shared is not None:
        handles.append(mixture.shared.down_proj.register_forward_hook(keep_shared))
    if mixture.shared_gate is not None:
        handles.append(mixture.shared_gate.register_forward_hook(keep_gate))
    return [*handles, mixture.block.register_forward_hook(finish)]


def layer_norms(
    module: nn.Module, dense: Callable[[nn.Module], Float[Tensor, "d_out d_in"]]
) -> Float[Tensor, " width"]:
    """‖W_down[:, i]‖₂ of every neuron of a layer; `dense` returns the weight of a projection."""
    mixture = Mixture.of(module)
    return column_norms(dense(module)) if mixture is None else mixture.norms(dense)


@contextmanager
def removing(handle: Any) -> Iterator[None]:
    """A hook handle as a context manager."""
    try:
        yield
    finally:
        handle.remove()


def _product(down: nn.Module, output: Tensor) -> Tensor:
    """W_down · h, without the bias."""
    bias = bias_of(down)
    return output if bias is None else output - bias
