"""How often tokens are routed to each expert."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hq.backends.batching import plan, span_weights
from hq.backends.transformers.activations import removing
from hq.backends.transformers.backend import TorchBackend
from hq.backends.transformers.eager import eager
from hq.backends.transformers.experts import Mixture, Routing
from hq.backends.transformers.prefix import PrefixCache
from hq.neurons.prompt_response import PromptResponse


def routed_shares(
    backend: TorchBackend, exchanges: Sequence[PromptResponse]
) -> Float[np.ndarray, "n block"]:
    """Share of each response's tokens that are routed to each block of `identity.space.blocks`.

    It is 1 for dense layers and for shared experts. Raises HQError for a compiled model.
    """
    space = backend.identity.space
    shares = np.ones((len(exchanges), len(space.blocks)), dtype=np.float32)
    mixtures = {layer: m for layer, d in enumerate(backend.downs) if (m := Mixture.of(d))}
    if not mixtures:
        return shares
    layout = plan(exchanges, backend.token_budget)
    start = len(layout.prefix)
    routings: dict[int, Routing] = {}
    modules = [mixture.routed for mixture in mixtures.values()]
    with torch.inference_mode(), eager(backend.model, modules):
        prefix = PrefixCache(backend.decoder, layout.prefix, backend.device)
        for rows in layout.batches:
            batch = [exchanges[row] for row in rows]
            ids = backend.padded(batch, start)
            weights = span_weights(batch, start, ids.shape[1], ("answer",))[:, 0]
            with ExitStack() as hooks:
                for layer, mixture in mixtures.items():

                    def keep(_: nn.Module, args: Any, __: Tensor, layer: int = layer) -> None:
                        routings[layer] = Routing.of(args)

                    hooks.enter_context(removing(mixture.routed.register_forward_hook(keep)))
                backend.decoder(ids, **prefix.inputs(len(batch)))
            for number, block in enumerate(space.blocks):
                own = mixtures.get(block.layer)
                if own is None or block.expert in (None, len(own.routed.down_proj)):
                    continue
                reached = torch.eq(routings[block.layer].experts, block.expert).any(dim=1)
                at_token = reached.cpu().numpy().reshape(weights.shape)
                shares[rows, number] = (weights * at_token).sum(axis=1)
    return shares
