"""Generation requests, and answers: their tokens, drafts and final form."""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel

from harness.serve.generation.sampler import SamplingSettings
from hq.tracing.sampling import StopCriteria

FinishReason = Literal["stop", "length", "content_filter"]
HallucinationVerdict = Literal["hallucination", "no hallucination"]
Decision = Literal["pass", "annotate", "regenerate", "block"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer to generate: encoded prompt, stop criteria and settings.

    Args:
        trim: whether white space before the first word belongs to the prompt form.
        grammar: a JSON schema as `GrammarCompiler.check` returned it; "" for free text.
        top_logprobs: number of likely tokens listed for each generated one; None for no
            log-probabilities.
    """

    prompt: tuple[int, ...]
    stop: StopCriteria
    max_new_tokens: int
    sampling: SamplingSettings
    alpha: float
    domain: str
    trim: bool = False
    grammar: str = ""
    top_logprobs: int | None = None


class Reading(BaseModel):
    """The probe's output at one token.

    `score` is the score of the answer up to this token. `neurons` holds (layer, index, CETT,
    contribution to the token's score) of the neurons with the largest contributions.
    """

    token: int
    token_score: float
    score: float
    confidence: float
    neurons: list[tuple[int, int, float, float]]


@dataclass(frozen=True, slots=True)
class PieceLogprob:
    """Log-probability of one vocabulary piece; `top` are the likeliest pieces at its position.

    A special token has a piece too, but adds nothing to the answer's text.
    """

    piece: bytes
    logprob: float
    special: bool = False
    top: tuple["PieceLogprob", ...] = ()

    @property
    def text(self) -> str:
        """The bytes as text; incomplete characters are replaced."""
        return self.piece.decode(errors="replace")

    @property
    def characters(self) -> int:
        """Number of complete characters that the piece adds to the text."""
        return 0 if self.special else len(self.piece.decode(errors="ignore"))


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer: the text that it adds, the probe's reading, its log-probability."""

    text: str
    reading: Reading
    logprob: PieceLogprob | None = None


@dataclass(slots=True)
class Draft:
    """An answer that is being written, with the H-Neurons scaled by `alpha`."""

    alpha: float
    tokens: list[Token] = field(default_factory=list)
    tail: str = ""  # text held back until the end because it could have begun a stop string
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """The complete text."""
        return "".join(token.text for token in self.tokens) + self.tail

    @property
    def score(self) -> float | None:
        """The score of the answer so far; None for an empty answer."""
        return self.tokens[-1].reading.score if self.tokens else None


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """A finished answer after the policy was applied.

    `text` is what the client receives: the policy's message if the draft is blocked. `verdict` is
    None for an empty draft.
    """

    draft: Draft
    threshold: float
    verdict: HallucinationVerdict | None
    decision: Decision
    regenerated: bool
    blocked: bool
    text: str

    @property
    def finish_reason(self) -> FinishReason:
        """Why the answer ended."""
        return "content_filter" if self.blocked else self.draft.finish_reason or "stop"
