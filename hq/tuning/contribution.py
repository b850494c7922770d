"""CETT of chosen neurons, differentiable in a LoRA, and the penalty on it.

For neuron i of layer l and a text x, c_i(x) is the mean over the tokens of a span of

    |h_i| · ‖W_down[:, i]‖₂ ÷ D

with D = Σ_j |h_j| · ‖W_down[:, j]‖₂ (`sum`) or ‖W_down · h‖₂ (`output`), as in `hq.neurons.cett`,
and W_down of the adapted model. The reference model gives every neuron
a target τ_i, the quantile q of c_i over right answers, and a unit s_i, their mean. The penalty is
the mean over texts and neurons of

    max(0, c_i(x) − τ_i) ÷ s_i (`hinge`)    or    c_i(x) ÷ s_i (`activation`).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hq.backends.batching import span_weights
from hq.backends.transformers.activations import removing
from hq.backends.transformers.hooks import require_met
from hq.neurons.cett import Measure, Span, column_norms, span_means
from hq.neurons.prompt_response import PromptResponse
from hq.neurons.space import NeuronSpace
from hq.tuning.adapter import merged_weight
from hq.tuning.settings import Penalty

_TINY = 1e-12  # a unit below it is that of a neuron that is silent on right answers


@dataclass(frozen=True, slots=True)
class Chosen:
    """Neurons of a model, ascending, with the measure and the span of their CETT."""

    flat: Int[np.ndarray, " k"]
    space: NeuronSpace
    measure: Measure
    span: Span


@dataclass(frozen=True, slots=True)
class Reference:
    """Target and unit of each chosen neuron: of the reference model, on right answers."""

    target: Float[Tensor, " k"]
    unit: Float[Tensor, " k"]

    @classmethod
    def of(cls, values: Float[Tensor, "text k"], quantile: float) -> "Reference":
        """The quantile and the mean over texts."""
        return cls(torch.quantile(values, quantile, dim=0), values.mean(dim=0).clamp_min(_TINY))

    def penalty(self, values: Float[Tensor, "text k"], kind: Penalty) -> Float[Tensor, ""]:
        """Return the penalty of these contributions."""
        excess = (values - self.target).clamp_min(0) if kind == "hinge" else values
        return (excess / self.unit).mean()

    def relative(self, values: Float[Tensor, "text k"]) -> float:
        """Return the mean contribution in units of the reference on right answers."""
        return float((values / self.unit).mean())


class Contributions:
    """Reads c_i of chosen neurons in forward passes of a decoder with or without a LoRA."""

    def __init__(self, body: nn.Module, downs: Sequence[nn.Module], chosen: Chosen) -> None:
        self._body = body
        self._downs = downs
        self._chosen = chosen
        layers, _, within = chosen.space.locate(chosen.flat)
        self._within = {
            layer: torch.from_numpy(within[layers == layer]) for layer in np.unique(layers).tolist()
        }

    def __call__(
        self, ids: Int[Tensor, "text seq"], texts: Sequence[PromptResponse]
    ) -> Float[Tensor, "text k"]:
        """Return c_i of each text, given its padded token ids, in the order of the neurons.

        Raises HQError if the pass did not reach every layer once.
        """
        weights = span_weights(texts, 0, ids.shape[1], (self._chosen.span,))
        of_tokens = torch.from_numpy(weights).to(ids.device)
        read: dict[int, list[Tensor]] = {layer: [] for layer in self._within}
        with ExitStack() as stack:
            for layer in self._within:
                hook = partial(self._read, layer, of_tokens, read[layer])
                handle = self._downs[layer].register_forward_hook(hook)
                stack.enter_context(removing(handle))
            self._body(ids, use_cache=False)
        for layer, values in read.items():
            require_met(layer, len(values))
        return torch.cat([values[0] for values in read.values()], dim=1)

    def _read(
        self,
        layer: int,
        weights: Float[Tensor, "text 1 seq"],
        into: list[Tensor],
        module: nn.Module,
        args: tuple[Any, ...],
        output: Tensor,
    ) -> None:
        texts, _, seq = weights.shape
        bias = getattr(module, "bias", None)
        product = output if bias is None else output - bias
        means = span_means(
            args[0].reshape(texts, seq, -1),
            product.reshape(texts, seq, -1),
            column_norms(merged_weight(module)),
            weights,
            (self._chosen.measure,),
        )
        into.append(means[:, 0, 0, self._within[layer].to(means.device)])
