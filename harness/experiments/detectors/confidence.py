"""Stage `confidence`: entropy and log-probability of each token of the answers, and P(True).

P(True) (Kadavath et al. 2022, arXiv 2207.05221): the model is shown a question with the answer, and
asked whether the answer is true. The score is the log odds of "True" against "False", at the first
token in which they differ.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from harness.experiments.detectors.parts import Parts
from harness.stages import mapping
from harness.stages.graph import Graph
from harness.stages.loading import SPELLING
from harness.stages.samples import Sample, read_samples
from harness.stages.select import SAMPLES_FILE
from harness.store.node import Node, Stage, Work
from harness.store.store import digest
from hq.errors import HQError
from hq.models.encoding import Encoder
from hq.neurons.prompt_response import PromptResponse

if TYPE_CHECKING:
    from harness.stages.materials import Materials

_FILE = "confidence.npz"
# Facts that no scenario asks about.
_EXAMPLES = (
    ("What is the largest planet in the Solar System?", "Jupiter", True),
    ("Who wrote the play Hamlet?", "Charles Dickens", False),
    ("In which year did World War II end?", "1945", True),
    ("What is the chemical formula of water?", "CO2", False),
)
_VERDICTS = (" True", " False")


class Confidence(NamedTuple):
    """The output of the stage; tokens are those of all answers, one answer after the other."""

    entropy: Float[np.ndarray, " token"]  # of the distribution that predicts the token, in nats
    log_prob: Float[np.ndarray, " token"]  # of the token, in nats
    ends: Int[np.ndarray, " sample"]  # index after the last token of each answer
    p_true: Float[np.ndarray, " sample"]  # log odds of "True" against "False"

    def over_answers(self, values: Float[np.ndarray, " token"]) -> list[Float[np.ndarray, " t"]]:
        """Return the values of each answer's tokens."""
        return np.split(values, self.ends[:-1])


def node(m: "Materials", precision: str) -> Node:
    """Declare the confidence of a precision in the samples' answers."""
    graph = Graph(m)
    n = graph.trace(precision).units
    return Node(
        STAGE,
        m.models.parameters(precision, SPELLING) | {"p_true": digest([_EXAMPLES, _VERDICTS])},
        mapping.model_inputs(m, precision) | {"samples": graph.samples.output(SAMPLES_FILE)},
        precision,
        units=2 * n,
        unit="texts",
        memory=m.resident(precision),
    )


def p_true_prompt(tokenizer: Any, question: str, answer: str) -> tuple[int, ...]:
    """Return the token ids of four judged answers, and this question and answer to be judged."""
    encoder = Encoder(tokenizer)

    def shown(question: str, answer: str) -> str:
        return (
            f"Question: {question}\nProposed answer: {answer}\n"
            "Is the proposed answer true or false?"
        )

    examples = "".join(f"{shown(q, a)} {verdict}\n\n" for q, a, verdict in _EXAMPLES)
    return tuple(encoder.text(examples + shown(encoder.user(question), encoder.user(answer))))


def verdict_tokens(m: "Materials") -> tuple[tuple[int, ...], int, int]:
    """Return the tokens that " True" and " False" have in common, and the next one of each.

    Raises HQError if the tokens of one begin with all tokens of the other.
    """
    true, false = (m.encode(verdict) for verdict in _VERDICTS)
    for k, (one, other) in enumerate(zip(true, false, strict=False)):
        if one != other:
            return true[:k], one, other
    raise HQError(
        f"The tokenizer of {m.path.name} does not distinguish True and False, so P(True) cannot be "
        "read: use a model with another tokenizer."
    )


def p_true_exchanges(m: "Materials", samples: Sequence[Sample]) -> list[PromptResponse]:
    """Return the prompts that ask about each sample's answer, with one token after them."""
    common, true, _ = verdict_tokens(m)
    prompts = (p_true_prompt(m.tokenizer, s.question, s.text) for s in samples)
    return [PromptResponse(prompt + common, (true,)) for prompt in prompts]


def make(work: "Work[Materials]") -> None:
    """Write the arrays, after the batches of a killed run."""
    m = work.materials
    samples = read_samples(work.inputs["samples"] / SAMPLES_FILE)
    exchanges = [sample.exchange for sample in samples]
    asked, (_, true, false) = p_true_exchanges(m, samples), verdict_tokens(m)
    lengths = np.array([len(exchange.response) for exchange in exchanges])
    ends, parts = np.cumsum(lengths), Parts(work.folder)
    entropy, log_prob = np.zeros(ends[-1]), np.zeros(ends[-1])
    with work.task(2 * len(samples), "texts") as task:
        backend = mapping.backend(work)
        for predictions in backend.predictions(exchanges, skip=parts.done):
            arrays = {"entropy": predictions.entropy, "log_prob": predictions.log_prob}
            parts.write(predictions.number, predictions.rows, **arrays)
        for number in sorted(parts.done):
            part = parts.read(number)
            rows = part["rows"]
            tokens = np.concatenate([np.arange(ends[r] - lengths[r], ends[r]) for r in rows])
            entropy[tokens], log_prob[tokens] = part["entropy"], part["log_prob"]
            task.advance(len(rows))
        p_true = np.zeros(len(samples))
        for row, logits in backend.logits(asked):
            p_true[row] = logits[0, true] - logits[0, false]
            task.advance(1)
    np.savez(work.folder / _FILE, entropy=entropy, log_prob=log_prob, ends=ends, p_true=p_true)
    parts.remove()


def read(folder: Path) -> Confidence:
    """Read the output of a finished node."""
    with np.load(folder / _FILE, allow_pickle=False) as arrays:
        return Confidence(**{name: arrays[name] for name in Confidence._fields})


STAGE = Stage("confidence", make, sources=("hq.backends.opening",))
