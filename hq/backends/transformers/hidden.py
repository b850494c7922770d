"""Hooks that read the residual stream and the outputs of attention heads over chosen tokens."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hq.backends.base import Site
from hq.backends.transformers.activations import removing
from hq.backends.transformers.hooks import require_met
from hq.errors import HQError
from hq.models.architectures import Architecture
from hq.models.placement import PerDevice

# The last part of the name of an attention's output projection, in every family of transformers
# that hq has a record of.
_OUTPUTS = ("o_proj", "out_proj", "c_proj", "dense", "wo")


def attention_outputs(decoder: nn.Module, architecture: Architecture) -> list[nn.Module]:
    """Return the output projection of every layer's attention, in order.

    It is the module with one of the usual names inside a module whose name contains "att". Raises
    HQError if a layer does not have exactly one.
    """
    found = []
    for number, layer in enumerate(_layers(decoder, architecture)):
        outputs = [
            module
            for name, module in layer.named_modules()
            if name.rpartition(".")[2] in _OUTPUTS and "att" in name.rpartition(".")[0].lower()
        ]
        if len(outputs) != 1:
            raise HQError(
                f"Layer {number} ({type(layer).__name__}) has {len(outputs)} "
                "modules that look like the output projection of its attention, not one: read the "
                "site 'residual' only."
            )
        found += outputs
    return found


class HiddenHooks:
    """Read hidden states at every layer of a forward pass, as weighted sums over tokens.

    `expect` sets the token weights before a pass, and `collect` returns the sums after it. Hooks
    are on the model only inside `with`.
    """

    def __init__(
        self, decoder: nn.Module, architecture: Architecture, sites: Sequence[Site]
    ) -> None:
        layers = _layers(decoder, architecture)
        self._modules: dict[Site, list[nn.Module]] = dict.fromkeys(sites, layers)
        if "heads" in sites:
            self._modules["heads"] = attention_outputs(decoder, architecture)
        self._stack = ExitStack()
        self._weights = PerDevice(torch.empty(0))  # [batch, weighting, seq]
        self._shape = torch.Size((0, 0, 0))  # of the weights
        self._sums: dict[tuple[Site, int], Float[Tensor, "batch weighting width"]] = {}
        self._met: list[tuple[Site, int]] = []

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that are read."""
        return [module for modules in self._modules.values() for module in modules]

    def __enter__(self) -> "HiddenHooks":
        for site, modules in self._modules.items():
            for layer, module in enumerate(modules):
                if site == "heads":
                    handle = module.register_forward_pre_hook(partial(self._before, layer))
                else:
                    handle = module.register_forward_hook(partial(self._after, layer))
                self._stack.enter_context(removing(handle))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def expect(self, weights: Float[Tensor, "batch weighting seq"]) -> None:
        """Set the weights of each token of the next pass."""
        self._weights, self._shape = PerDevice(weights), weights.shape
        self._sums, self._met = {}, []

    def collect(self) -> dict[Site, Float[Tensor, "weighting batch layer width"]]:
        """Return the weighted sums of the pass. Raises HQError unless it reached every layer."""
        sums: dict[Site, Tensor] = {}
        for site, modules in self._modules.items():
            for layer in range(len(modules)):
                require_met(layer, self._met.count((site, layer)))
            device = self._sums[site, 0].device
            of_layers = [self._sums[site, layer].to(device) for layer in range(len(modules))]
            sums[site] = torch.stack(of_layers, dim=2).transpose(0, 1)
        self._sums = {}
        return sums

    def _before(self, layer: int, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._add("heads", layer, args[0])

    def _after(self, layer: int, _: nn.Module, args: Any, output: Any) -> None:
        self._add("residual", layer, output[0] if isinstance(output, tuple) else output)

    def _add(self, site: Site, layer: int, states: Tensor) -> None:
        batch, _, seq = self._shape
        self._met.append((site, layer))
        weights = self._weights.on(states.device)
        self._sums[site, layer] = weights @ states.reshape(batch, seq, -1).float()


def _layers(decoder: nn.Module, architecture: Architecture) -> list[nn.Module]:
    layers = decoder.get_submodule(architecture.layers)
    assert isinstance(layers, nn.ModuleList)
    return list(layers)
