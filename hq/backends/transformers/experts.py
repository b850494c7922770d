"""The experts of one layer: what each computes for the tokens that are routed to it.

transformers computes the routed experts of a layer in one module, by one of several
implementations (`experts_implementation`), and none of them calls a module in which h could be
hooked. Every implementation has the same inputs, though: the tokens, the experts of each, and their
routing weights. So h is computed again from these inputs, only for tokens that are read, and the
model itself runs unchanged. Scaling adds to the module's output what the scaled neurons change:
Σ_e g_e · (α − 1) · h_i · W_down[:, i]. `verify_experts` compares both with the implementation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from hq.errors import HQError
from hq.models.placement import PerDevice
from hq.neurons.cett import column_norms

_CHECKED = 8  # random tokens on which an implementation is checked
_TOLERANCE = 0.05  # relative; arithmetic in BF16 stays below 0.02


@dataclass(frozen=True, slots=True)
class Routing:
    """The inputs of a layer's routed experts; tokens of all rows, one after another."""

    x: Float[Tensor, "token d_model"]
    experts: Int[Tensor, "token top_k"]
    weights: Float[Tensor, "token top_k"]

    @classmethod
    def of(cls, args: tuple[Any, ...]) -> "Routing":
        """From the arguments of a call of the module."""
        if len(args) != 3:
            raise HQError(
                "The experts of this model were called with other arguments than tokens, experts "
                "and weights: hq cannot read them in this version of transformers."
            )
        return cls(*args)

    def to(self, expert: int) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """The tokens that are routed to an expert, and their weights."""
        tokens, slots = torch.where(self.experts == expert)
        return tokens, self.weights[tokens, slots].float()


Scaling = Mapping[int, tuple[Int[Tensor, " k"], Float[Tensor, " k"]]]
"""Indices and factors α of neurons, by expert."""


@dataclass(frozen=True, slots=True)
class _ExpertFactors:
    """The product of all factors that act on an expert's neurons, computed once per context."""

    rows: PerDevice  # neurons that it changes
    factors: PerDevice  # of every neuron, float32
    changes: PerDevice  # factor - 1, of `rows`

    @classmethod
    def of(cls, scalings: Sequence[Scaling], expert: int, width: int) -> "_ExpertFactors":
        product = torch.ones(width, dtype=torch.float64)
        for indices, alphas in (scaling[expert] for scaling in scalings if expert in scaling):
            product[indices] *= alphas.double()
        factors = product.float()
        rows = torch.where(factors != 1)[0]
        return cls(PerDevice(rows), PerDevice(factors), PerDevice(factors[rows] - 1))


@dataclass(frozen=True, slots=True)
class _Active:
    """The scalings that act on a layer's routed experts, the outermost first."""

    scalings: tuple[Scaling, ...]
    by_expert: Mapping[int, _ExpertFactors]

    @classmethod
    def of(cls, scalings: tuple[Scaling, ...], width: int) -> "_Active":
        experts = sorted({expert for scaling in scalings for expert in scaling})
        with torch.inference_mode(False):
            return cls(scalings, {e: _ExpertFactors.of(scalings, e, width) for e in experts})


_ACTIVE: WeakKeyDictionary[nn.Module, _Active] = WeakKeyDictionary()


@dataclass(frozen=True)
class Mixture:
    """The modules of one layer's mixture of experts."""

    block: nn.Module  # its output is the layer's
    routed: Any  # with 3-D weights
    shared: Any  # the FFN that every token passes, or None
    shared_gate: Any  # its weight before the sigmoid, or None

    @classmethod
    def of(cls, module: nn.Module) -> "Mixture | None":
        """The mixture of a block; None if the module is no block of experts."""
        routed = getattr(module, "experts", None)
        if routed is None:
            return None
        for name in ("_is_expert_parallel", "has_post_expert_norm"):
            if getattr(routed, name, False):
                raise HQError(
                    f"{type(routed).__name__} has experts that hq cannot read ({name}): load the "
                    "model on one device, without parallel experts."
                )
        if routed.down_proj.is_meta:
            raise HQError(
                f"{type(routed).__name__} has experts that are offloaded to the CPU or a disk, and "
                "hq reads them in every pass: load the model with all its layers on GPUs."
            )
        shared, gate = (getattr(module, n, None) for n in ("shared_expert", "shared_expert_gate"))
        return cls(module, routed, shared, gate)

    @property
    def implementation(self) -> str:
        """The name of what computes the routed experts."""
        return str(getattr(self.routed.config, "_experts_implementation", None) or "eager")

    @property
    def width(self) -> int:
        """Number of neurons of each routed expert."""
        return int(self.routed.down_proj.shape[1 if self.routed.is_transposed else 2])

    @property
    def widths(self) -> list[int]:
        """Number of neurons of each expert, the shared one last."""
        shared = [] if self.shared is None else [int(self.shared.down_proj.in_features)]
        return [self.width] * len(self.routed.down_proj) + shared

    @property
    def slices(self) -> list[slice]:
        """The neurons of each expert among those of the layer."""
        return [slice(*ends) for ends in pairwise(accumulate(self.widths, initial=0))]

    def down(self, expert: int) -> Float[Tensor, "d_model d_ff"]:
        """W_down of a routed expert."""
        down: Tensor = self.routed.down_proj[expert]
        return down.T if self.routed.is_transposed else down

    def norms(
        self, dense: Callable[[nn.Module], Float[Tensor, "d_out d_in"]]
    ) -> Float[Tensor, " width"]:
        """‖W_down[:, i]‖₂ of every neuron; `dense` returns the weight of a projection."""
        norms = [column_norms(self.down(e)) for e in range(len(self.routed.down_proj))]
        if self.shared is not None:
            norms.append(column_norms(dense(self.shared.down_proj)))
        return torch.cat(norms)

    def h(
        self,
        x: Float[Tensor, "n d_model"],
        expert: int,
        rows: Int[Tensor, " k"] | None = None,
        scaled: bool = True,
    ) -> Float[Tensor, "n k"]:
        """Some neurons' h in a routed expert, or all; `scaled` by the factors that act now."""
        routed = self.routed
        weight: Tensor = routed.gate_up_proj[expert]
        weight = weight.T if routed.is_transposed else weight
        bias = routed.gate_up_proj_bias[expert] if routed.has_bias else None
        width = len(weight) // 2
        if rows is not None:
            pair = (rows, width + rows) if routed.is_concatenated else (2 * rows, 2 * rows + 1)
            both = torch.stack(pair, dim=0 if routed.is_concatenated else 1).flatten()
            weight, bias = weight[both], None if bias is None else bias[both]
        h: Tensor = routed._apply_gate(linear(x.to(weight.dtype), weight, bias))
        active = _ACTIVE.get(self.routed) if scaled else None
        if active is not None and expert in active.by_expert:
            factors = active.by_expert[expert].factors.on(h.device, h.dtype)
            h = h * (factors if rows is None else factors[rows])
        return h

    def output(self, routing: Routing, output: Tensor) -> Float[Tensor, "token d_model"]:
        """The output of the block without the biases of down projections: Σ_e g_e · W_down · h."""
        product = output.flatten(0, -2).float()
        if not self.routed.has_bias:
            return product
        biases = self.routed.down_proj_bias[routing.experts].float()
        without: Tensor = product - (biases * routing.weights[..., None].float()).sum(dim=1)
        return without


@contextmanager
def scaled_experts(mixture: Mixture, scaling: Scaling, meet: Callable[[], None]) -> Iterator[None]:
    """Scale neurons of routed experts while the context lasts, for the tokens routed to them.

    Of nested contexts, the outermost changes the output, by the product of all their factors.
    """
    routed = mixture.routed

    def add(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        meet()
        active = _ACTIVE[routed]
        if active.scalings[0] is not scaling:
            return output
        routing, total = Routing.of(args), output.float()
        for expert, factors in active.by_expert.items():
            rows = factors.rows.on(output.device)
            tokens, weights = routing.to(expert) if len(rows) else (rows, rows)
            if not len(tokens):
                continue
            h = mixture.h(routing.x[tokens], expert, rows, scaled=False).float()
            change = h * factors.changes.on(output.device) * weights[:, None]
            down = mixture.down(expert)[:, rows].float()
            total = total.index_add(0, tokens, change @ down.T)
        return total.to(output.dtype)

    handle = routed.register_forward_hook(add)
    outer = _ACTIVE[routed].scalings if routed in _ACTIVE else ()
    _ACTIVE[routed] = _Active.of((*outer, scaling), mixture.width)
    try:
        yield
    finally:
        handle.remove()
        left = tuple(s for s in _ACTIVE[routed].scalings if s is not scaling)
        _ACTIVE[routed] = _Active.of(left, mixture.width)


def verify_experts(modules: Sequence[nn.Module]) -> None:
    """Compare the routed experts of each layer with the formulas, on random tokens.

    Raises HQError, which names the implementation, unless its output is Σ_e g_e · E_e.
    """
    generator = torch.Generator().manual_seed(0)
    for layer, module in enumerate(modules):
        mixture = Mixture.of(module)
        if mixture is None:
            continue
        count, d_model = len(mixture.routed.down_proj), mixture.down(0).shape[0]
        device, dtype = mixture.routed.down_proj.device, mixture.routed.down_proj.dtype
        x = torch.randn(_CHECKED, d_model, generator=generator).to(device, dtype)
        first = torch.randint(count, (_CHECKED, 1), generator=generator)
        chosen = torch.cat([first, (first + 1) % count], dim=1).to(device)
        weights = torch.rand(_CHECKED, 2, generator=generator).to(device, dtype)
        routing = Routing(x, chosen, weights)
        with torch.inference_mode():
            try:
                found = mixture.routed(x, chosen, weights).float()
            except Exception as error:
                raise _unverified(mixture, layer, "it fails") from error
            expected = torch.zeros_like(found)
            for expert in sorted(set(chosen.flatten().tolist())):
                tokens, weight = routing.to(expert)
                product = linear(mixture.h(x[tokens], expert), mixture.down(expert)).float()
                expected.index_add_(0, tokens, product * weight[:, None])
            difference = mixture.output(routing, found) - expected
            off = float(difference.norm() / expected.norm())
        if not off <= _TOLERANCE:
            raise _unverified(mixture, layer, f"its output is off by {off:.0%}")


def _unverified(mixture: Mixture, layer: int, cause: str) -> HQError:
    return HQError(
        f"The experts of layer {layer} do not compute the sum of experts that "
        f"{type(mixture.routed).__name__} defines with experts_implementation="
        f"{mixture.implementation!r}: {cause}; load the model with another implementation, such as "
        "'eager'."
    )
