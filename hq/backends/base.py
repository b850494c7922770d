"""The protocol that every backend implements, its data types, and checks that backends share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hq.errors import HQError
from hq.models.audit import AuditRow
from hq.neurons.cett import Measure, Span
from hq.neurons.factors import Factors
from hq.neurons.features import Features
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse

if TYPE_CHECKING:
    from hq.models.ffn_weights import FFNs
    from hq.models.head import Head, ReferenceLogits
    from hq.models.logits import Distributions


Site = Literal["residual", "heads"]
"""Where hidden states are read: the residual stream after each layer, or the input of each layer's
attention output projection, which is the outputs of its heads side by side."""
SITES: tuple[Site, ...] = get_args(Site)


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Hidden states of one batch of exchanges over the tokens of their responses, by site."""

    number: int  # of the batch in the plan
    rows: Int[np.ndarray, " batch"]  # indices into the list of exchanges
    mean: Mapping[Site, Float[np.ndarray, "batch layer width"]]  # over the response's tokens
    last: Mapping[Site, Float[np.ndarray, "batch layer width"]]  # at its last token


@dataclass(frozen=True, slots=True)
class TraceBatch:
    """The traces of one batch of exchanges; `rows` are their indices in the traced list."""

    number: int  # of the batch in the plan
    rows: Int[np.ndarray, " batch"]
    values: Float[np.ndarray, "batch measure span p"]  # a column per flat index
    measures: tuple[Measure, ...]
    spans: tuple[Span, ...]
    model: ModelIdentity
    precision: str
    missing: frozenset[int] = frozenset()  # as Backend.missing

    def features(self, measure: Measure, span: Span) -> Features:
        """One measure over one span, as features that a NeuronSet scores.

        Raises HQError if it was not traced.
        """
        if measure not in self.measures or span not in self.spans:
            raise HQError(f"The batch has no {measure} over the {span} span: trace it.")
        values = self.values[:, self.measures.index(measure), self.spans.index(span)]
        return Features(values, measure, span, self.model, self.precision, self.missing)


@dataclass(frozen=True, slots=True)
class Predictions:
    """How well the model predicts the response tokens of a batch of exchanges, in nats.

    Arrays have one row per response token, exchange after exchange in the order of `rows`.
    """

    number: int  # of the batch in the plan
    rows: Int[np.ndarray, " batch"]  # indices into the list of exchanges
    ends: Int[np.ndarray, " batch"]  # index after the last token of each exchange
    entropy: Float[np.ndarray, " token"]
    log_prob: Float[np.ndarray, " token"]  # of the response token
    kl: Float[np.ndarray, " token"] | None  # KL(reference ‖ this); None without a reference
    hidden: Float[np.ndarray, "token hidden"] | None  # None where the backend has no access

    def means(self, values: Float[np.ndarray, " token"]) -> Float[np.ndarray, " batch"]:
        """Mean over the tokens of each exchange."""
        return np.array([part.mean() for part in np.split(values, self.ends[:-1])])


@dataclass(frozen=True, slots=True)
class TokenReadings:
    """The CETT of some neurons at each response token of a batch of exchanges.

    Rows are in the order of `Predictions`. A decision value of a NeuronSet is linear in the CETT,
    so that of a span is the mean of those of its tokens.
    """

    number: int  # of the batch in the plan
    rows: Int[np.ndarray, " batch"]  # indices into the list of exchanges
    ends: Int[np.ndarray, " batch"]  # index after the last token of each exchange
    values: Float[np.ndarray, "token k"]  # a column per neuron


class Decoding(Protocol):
    """Continuations of prompts in parallel, one row per continuation."""

    def share(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Compute the prefix that all `prompts` share, once for every later `start`."""
        ...

    def start(self, prompts: Sequence[tuple[int, ...]]) -> Float[Tensor, "row vocab"]:
        """Process prompts, and return the logits of the token after each."""
        ...

    def step(
        self, parents: Int[np.ndarray, " row"], tokens: Int[np.ndarray, " row"]
    ) -> Float[Tensor, "row vocab"]:
        """Append tokens[r] to row parents[r] of the last call, and return the next logits."""
        ...


class Backend(Protocol):
    """One loaded model at one precision."""

    identity: ModelIdentity
    precision: str
    missing: frozenset[int]  # flat indices of missing neurons: traced as zero, never scaled
    unmatched: frozenset[int]  # missing neurons, and those that weights did not identify

    @property
    def compute(self) -> str:
        """The type of the arithmetic."""
        ...

    @property
    def norms(self) -> Float[np.ndarray, " p"]:
        """‖W_down[:, i]‖₂ of this variant's own dequantized weights."""
        ...

    def close(self) -> None:
        """Free the weights."""
        ...

    def audit(self) -> list[AuditRow]:
        """How the loaded modules store weights. Raises HQError if that is another precision."""
        ...

    def weight_bytes(self) -> int:
        """Bytes of the weights as they ship, embeddings and scales included."""
        ...

    def ffns(self) -> "FFNs":
        """The weights of each layer's FFN, dequantized."""
        ...

    def trace(
        self,
        exchanges: Sequence[PromptResponse],
        measures: tuple[Measure, ...],
        spans: tuple[Span, ...],
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[TraceBatch]:
        """CETT of every neuron, batch by batch, without the batches whose number is in `skip`."""
        ...

    def read_tokens(
        self,
        exchanges: Sequence[PromptResponse],
        neurons: Int[np.ndarray, " k"],
        measure: Literal["sum", "output"],
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[TokenReadings]:
        """CETT of these neurons (flat indices, ascending) at each response token.

        Batches whose number is in `skip` are left out.
        """
        ...

    def logits(
        self, exchanges: Sequence[PromptResponse]
    ) -> Iterator[tuple[int, Float[np.ndarray, "token vocab"]]]:
        """(row, logits that predict its response tokens), shortest exchanges first."""
        ...

    def predictions(
        self,
        exchanges: Sequence[PromptResponse],
        reference: "ReferenceLogits | None" = None,
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[Predictions]:
        """Entropy, log-probability and KL of each response token, batch by batch.

        Batches whose number is in `skip` are left out. Memory does not grow with the vocabulary.
        Raises HQError for logits that are not finite.
        """
        ...

    def hidden_states(
        self,
        exchanges: Sequence[PromptResponse],
        sites: Sequence[Site] = SITES,
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[HiddenStates]:
        """Hidden states of the response tokens at each site and layer, batch by batch.

        Batches whose number is in `skip` are left out. Raises HQError if a site cannot be found in
        the model, and for states that are not finite.
        """
        ...

    @property
    def head(self) -> "Head":
        """The map from last hidden states to logits. Raises HQError if the backend has none."""
        ...

    def decoding(self) -> Decoding:
        """A new set of continuations."""
        ...

    def scale(self, factors: Factors) -> AbstractContextManager[None]:
        """Multiply h_i by α for each neuron and its α, while the context lasts."""
        ...


def require_sites(sites: Sequence[Site]) -> None:
    """Raises HQError for a site that does not exist or is named twice, and if there is none."""
    if not sites or not set(sites) <= set(SITES) or len(set(sites)) < len(sites):
        raise HQError(
            f"The sites of hidden states are {', '.join(SITES)}, each at most once, not "
            f"{', '.join(sites) or 'none'}."
        )


def require_known(exchanges: Sequence[PromptResponse], vocabulary: int, name: str) -> None:
    """Raises HQError for token ids outside of the model's vocabulary."""
    for exchange in exchanges:
        if not 0 <= min(exchange.ids) <= max(exchange.ids) < vocabulary:
            raise HQError(
                f"An exchange has a token id outside the {vocabulary} tokens of {name}: trace it "
                "with the model that wrote the samples."
            )


def require_length(text: str, length: int, limit: int | None, model: str, new: int = 0) -> None:
    """Raises HQError, which names the text, if it and `new` tokens exceed the model's limit."""
    if limit is not None and length + new > limit:
        after = f" and room for {new} new ones" if new else ""
        raise HQError(
            f"{text} has {length} tokens{after}, but {model} takes at most {limit} "
            "(max_position_embeddings): shorten it, or leave it out."
        )


def require_fitting(
    exchanges: Sequence[PromptResponse], vocabulary: int, limit: int | None, name: str
) -> None:
    """Raises HQError for token ids outside of the vocabulary and texts that are too long."""
    require_known(exchanges, vocabulary, name)
    for row, exchange in enumerate(exchanges):
        require_length(f"Text {row}", len(exchange), limit, name)


def join_predictions(
    number: int,
    rows: Int[np.ndarray, " batch"],
    batch: Sequence[PromptResponse],
    parts: Sequence["Distributions"],
    hidden: Float[Tensor, "token hidden"] | None,
    precision: str,
) -> Predictions:
    """The predictions of a batch, from the distributions of consecutive parts of its tokens.

    Raises HQError for logits that are NaN or infinite.
    """

    def joined(values: Iterable[Float[Tensor, " part"]]) -> Float[np.ndarray, " token"]:
        return torch.cat(list(values)).numpy()

    entropy = joined(part.entropy for part in parts)
    log_prob = joined(part.log_prob for part in parts)
    divergences = [part.kl for part in parts if part.kl is not None]
    kl = joined(divergences) if divergences else None
    for values in (entropy, log_prob) if kl is None else (entropy, log_prob, kl):
        require_finite(values, precision)
    states = None if hidden is None else hidden.float().cpu().numpy()
    ends = np.cumsum([len(exchange.response) for exchange in batch])
    return Predictions(number, rows, ends, entropy, log_prob, kl, states)


def join_readings(
    number: int,
    rows: Int[np.ndarray, " batch"],
    parts: Sequence[Float[np.ndarray, "_ k"]],
    precision: str,
) -> TokenReadings:
    """The readings of a batch, from those of each exchange. Raises HQError if not finite."""
    values = np.concatenate(parts)
    require_finite(values, precision)
    return TokenReadings(number, rows, np.cumsum([len(part) for part in parts]), values)


def require_finite(values: Float[np.ndarray, "..."], precision: str) -> None:
    """Raises HQError for traces or logits that are NaN or infinite."""
    if not np.isfinite(values).all():
        raise HQError(
            f"The activations at {precision} are not finite: the model overflows or its weights "
            "are damaged."
        )


def scales_changed() -> HQError:
    """The error for factors that change between the prefix and a batch of one reading."""
    return HQError(
        "The scales changed while texts were read: end the reading before entering or leaving "
        "`scale`."
    )
