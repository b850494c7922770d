"""Stage `verification`: a chain of verification of each answer.

Chain-of-Verification (Dhuliawala et al. 2023, arXiv 2309.11495), factored, with one question: the
model writes a question that checks the answer, answers it without seeing the answer, and is then
asked for a final answer. The score is how unlikely the original answer is as the final one.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from harness.experiments.detectors.section import DetectorsSection
from harness.stages import mapping
from harness.stages.graph import Graph
from harness.stages.loading import SPELLING
from harness.stages.respond import respond
from harness.stages.samples import Sample, read_samples
from harness.stages.select import SAMPLES_FILE
from harness.store.node import Node, Stage, Work
from harness.store.progress import Task
from harness.store.store import digest
from hq.backends.base import Backend
from hq.backends.opening import max_rows
from hq.models.encoding import Encoder
from hq.neurons.prompt_response import PromptResponse
from hq.tracing.sampling import StopCriteria

if TYPE_CHECKING:
    from harness.stages.materials import Materials

_FILE = "verification.npz"
_LOG = "replies.jsonl"
# Question, draft, a question that checks it, the answer to that, and the final answer.
_EXAMPLES = (
    (
        "What is the largest planet in the Solar System?",
        "Jupiter",
        "Which planet of the Solar System has the largest diameter?",
        "Jupiter",
        "Jupiter",
    ),
    (
        "Who wrote the play Hamlet?",
        "Charles Dickens",
        "Which playwright is the author of Hamlet?",
        "William Shakespeare",
        "William Shakespeare",
    ),
    (
        "What is the chemical formula of water?",
        "H2O",
        "Which atoms are in a molecule of water?",
        "Two hydrogen atoms and one oxygen atom",
        "H2O",
    ),
)


def node(m: "Materials", precision: str, section: DetectorsSection) -> Node:
    """Declare the verification of the samples' answers."""
    graph = Graph(m)
    return Node(
        STAGE,
        m.models.parameters(precision, SPELLING)
        | m.stop_criteria.parameters
        | {
            "examples": digest(_EXAMPLES),
            "form": m.study.prompt.form,
            "max_new_tokens": [section.verification_tokens, m.study.sampling.max_new_tokens],
        },
        mapping.model_inputs(m, precision) | {"samples": graph.samples.output(SAMPLES_FILE)},
        precision,
        units=3 * graph.trace(precision).units,
        unit="texts",
        memory=m.resident(precision),
    )


def question_prompt(tokenizer: Any, sample: Sample) -> tuple[int, ...]:
    """Return the prompt that asks for a question which checks the answer."""
    encoder = Encoder(tokenizer)
    examples = "".join(
        f"Question: {q}\nAnswer: {draft}\nVerification question: {check}\n\n"
        for q, draft, check, _, _ in _EXAMPLES
    )
    question, answer = encoder.user(sample.question), encoder.user(sample.text)
    return tuple(
        encoder.text(f"{examples}Question: {question}\nAnswer: {answer}\nVerification question:")
    )


def final_prompt(tokenizer: Any, sample: Sample, check: str, found: str) -> tuple[int, ...]:
    """Return the prompt that asks for a final answer, given the check and its answer."""
    encoder = Encoder(tokenizer)

    def shown(question: str, draft: str, check: str, found: str) -> str:
        return (
            f"Question: {question}\nDraft answer: {draft}\n"
            f"Verification: {check} {found}\nFinal answer:"
        )

    examples = "".join(f"{shown(*parts)} {final}\n\n" for *parts, final in _EXAMPLES)
    parts = map(encoder.user, (sample.question, sample.text, check, found))
    return tuple(encoder.text(examples + shown(*parts)))


def verify(
    m: "Materials",
    backend: Backend,
    samples: list[Sample],
    folder: Path,
    new: tuple[int, int],
    task: Task,
) -> Float[np.ndarray, " sample"]:
    """Return minus the mean log-probability of each answer as the final one."""
    precision = backend.precision
    line = StopCriteria(m.stop_criteria.tokens, ("\n",), m.stop_criteria.decode)
    asked = [question_prompt(m.tokenizer, s) for s in samples]
    options = {"max_rows": max_rows(precision)}
    checks = respond(folder / _LOG, lambda: backend, asked, [{}], line, new[0], task, **options)[0]
    texts = [check.text.strip() for check in checks]
    prompts = [tuple(m.form.encode(m.tokenizer, text or "?")) for text in texts]
    found = respond(
        folder / f"answers-{_LOG}",
        lambda: backend,
        prompts,
        [{}],
        m.stop_criteria,
        new[1],
        task,
        **options,
    )[0]
    exchanges = [
        PromptResponse(final_prompt(m.tokenizer, s, check, f.text.strip()), s.response_ids)
        for s, check, f in zip(samples, texts, found, strict=True)
    ]
    scores = np.zeros(len(samples))
    for predictions in backend.predictions(exchanges):
        scores[predictions.rows] = -predictions.means(predictions.log_prob)
        task.advance(len(predictions.rows))
    return scores


def make(work: "Work[Materials]") -> None:
    """Write the scores, after the responses in the logs of a killed run."""
    samples = read_samples(work.inputs["samples"] / SAMPLES_FILE)
    first, second = work.parameters["max_new_tokens"]
    with work.task(3 * len(samples), "texts") as task:
        backend = mapping.backend(work)
        scores = verify(work.materials, backend, samples, work.folder, (first, second), task)
    np.savez(work.folder / _FILE, scores=scores)


def read(folder: Path) -> Float[np.ndarray, " sample"]:
    """Read the scores of a finished node."""
    with np.load(folder / _FILE, allow_pickle=False) as arrays:
        scores: Float[np.ndarray, " sample"] = arrays["scores"]
    return scores


STAGE = Stage("verification", make, sources=("hq.backends.opening",))
