"""Where an architecture has its experts, and how checkpoints store them.

A mixture of experts replaces the FFN of a layer: a router sends each token to a few of the experts,
and the block's output is the sum of their outputs, weighted by the router. transformers packs the
routed experts of a layer into 3-D parameters, `gate_up_proj` and `down_proj`.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hq.errors import HQError
from hq.neurons.space import NeuronBlock

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hq.models.checkpoint import StoredTensor


def every_layer(_: "PretrainedConfig", __: int) -> bool:
    """Every layer is a mixture."""
    return True


def by_step(config: "PretrainedConfig", layer: int) -> bool:
    """Every `decoder_sparse_step`-th layer is a mixture, without those in `mlp_only_layers`."""
    steps = (layer + 1) % int(config.decoder_sparse_step) == 0
    return bool(steps and config.num_experts > 0 and layer not in (config.mlp_only_layers or ()))


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of an architecture; paths begin at a layer.

    `count`, `width` and `shared_width` are the names of attributes of the config.
    """

    block: str = "mlp"  # the module whose output is the layer's
    count: str = "num_experts"
    width: str = "moe_intermediate_size"
    shared: str = ""  # the expert that every token passes; empty if there is none
    shared_width: str = ""
    is_mixture: Callable[["PretrainedConfig", int], bool] = every_layer
    transposed: bool = False  # packed in checkpoints: [d_in, d_out], gate and up in turn
    stored: str = "mlp.experts.{}."  # in checkpoints, of expert number {}
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    router: str = "mlp.gate"  # in checkpoints

    def blocks(self, config: "PretrainedConfig", layer: int) -> list[NeuronBlock]:
        """The routed experts of a layer in the router's order, then the shared one."""
        widths = [int(getattr(config, self.width))] * int(getattr(config, self.count))
        widths += [int(getattr(config, self.shared_width))] if self.shared else []
        return [
            NeuronBlock(layer=layer, width=width, expert=expert)
            for expert, width in enumerate(widths)
        ]

    def require_count(self, config: "PretrainedConfig", tensors: Iterable["StoredTensor"]) -> None:
        """Raises HQError if a layer of the checkpoint has another number of experts."""
        stated = int(getattr(config, self.count))
        before, after = map(re.escape, self.stored.split("{}"))
        one = re.compile(rf"\.(\d+)\.{before}(\d+){after}")
        packed = re.compile(r"\.(\d+)\.[a-z_]+\.experts\.(?:gate_up_proj|down_proj)$")
        router = re.compile(rf"\.(\d+)\.{re.escape(self.router)}\.weight$")
        found: dict[int, int] = {}
        for tensor in tensors:
            if match := one.search(tensor.name):
                layer, count = int(match[1]), int(match[2]) + 1
            elif match := packed.search(tensor.name) or router.search(tensor.name):
                layer, count = int(match[1]), tensor.shape[0]
            else:
                continue
            found[layer] = max(count, found.get(layer, 0))
        for layer, count in sorted(found.items()):
            if count != stated:
                raise HQError(
                    f"Layer {layer} of the checkpoint has {count} experts, but config.json says "
                    f"that it has {stated}: copy config.json again."
                )
