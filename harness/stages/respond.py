"""Greedy responses to prompts while some neurons are scaled.

Responses are appended to a log, with their prompt and the scaled neurons: another α, draw or trial
generates only missing responses, and a killed run continues after the last batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from harness.stages import mapping
from harness.stages.loading import SPELLING
from harness.store.jsonl import LOG_FILE, append, read_log
from harness.store.node import GrowingLog, Work
from harness.store.progress import Task
from harness.store.store import digest
from hq.backends.base import Backend
from hq.backends.opening import max_rows
from hq.neurons.factors import Factors
from hq.tracing.sampling import Sampling, StopCriteria, sample

if TYPE_CHECKING:
    from harness.stages.materials import Materials

GREEDY_LOG = GrowingLog("replies", sources=("hq.backends.opening", "harness.stages.mapping"))
PLAIN = "plain"
_ROWS = 64  # prompts per batch: larger batches are not faster on a CPU
_TOKENS = 6144  # per batch, with padding: the cells of llama.cpp, and a limit of memory

Prompt = tuple[int, ...]


class GreedyResponse(BaseModel):
    """One greedy response, with its prompt and the scaled neurons."""

    model_config = ConfigDict(frozen=True)

    variant: str
    prompt: str
    ids: tuple[int, ...]
    text: str
    truncated: bool


def variant_of(factors: Factors) -> str:
    """Return a digest of the factors other than 1; `plain` if there is none."""
    acting = sorted((*neuron, alpha) for neuron, alpha in factors.items() if alpha != 1)
    return digest(acting) if acting else PLAIN


def prompt_name(prompt: Prompt) -> str:
    """Return a digest of a prompt's token ids."""
    return digest(prompt)


def response_parameters(m: "Materials", precision: str, criteria: StopCriteria) -> dict[str, Any]:
    """Return what a response depends on, apart from its prompt and the scaled neurons."""
    return m.models.parameters(precision, SPELLING) | criteria.parameters


def logged_responses(
    work: "Work[Materials]",
    criteria: StopCriteria,
    prompts: Sequence[Prompt],
    variants: Sequence[Factors],
    max_new_tokens: int,
    name: str,
) -> list[list[GreedyResponse]]:
    """Return responses [variant][prompt] of a node's model, from the log that all nodes share.

    `name` is shown with the progress. Raises HQError if a prompt is too long.
    """
    m, precision = work.materials, str(work.node.precision)
    for prompt in prompts:
        m.require_length("A prompt", prompt, max_new_tokens)
    key = response_parameters(m, precision, criteria) | {
        "max_new_tokens": max_new_tokens,
        "file": work.digests.get("file"),
    }
    if "checkpoint" in work.digests:
        key["checkpoint"] = work.digests["checkpoint"]
    with (
        work.store.growing(GREEDY_LOG.name, GREEDY_LOG.version, key) as folder,
        work.task(len(prompts) * len(variants), "responses", name) as task,
    ):
        return respond(
            folder / LOG_FILE,
            partial(mapping.backend, work),
            prompts,
            variants,
            criteria,
            max_new_tokens,
            task,
            max_rows(precision),
        )


def respond(
    log: Path,
    open_backend: Callable[[], Backend],
    prompts: Sequence[Prompt],
    variants: Sequence[Factors],
    criteria: StopCriteria,
    max_new_tokens: int,
    task: Task,
    max_rows: int = 1 << 16,
) -> list[list[GreedyResponse]]:
    """Return the greedy responses [variant][prompt].

    Missing responses are generated and appended to the log.

    Args:
        log: The file of finished responses.
        open_backend: Loads the model; called only if a response is missing.
        prompts: Prompts as token ids.
        variants: Factors of the scaled neurons; empty factors scale nothing.
        criteria: What ends a response.
        max_new_tokens: The largest number of tokens of a response.
        task: Shows the number of responses.
        max_rows: The largest number of prompts in a batch.
    """
    known = {(r.variant, r.prompt): r for r in read_log(log, GreedyResponse)}
    names = {prompt_name(prompt): prompt for prompt in prompts}
    settings = Sampling(responses=1, temperature=0, max_new_tokens=max_new_tokens)
    for factors in variants:
        variant = variant_of(factors)
        missing = [name for name in names if (variant, name) not in known]
        task.advance(len(names) - len(missing))
        if not missing:
            continue
        backend = open_backend()
        decoding = backend.decoding()
        with backend.scale({n: a for n, a in factors.items() if a != 1}):
            decoding.share([names[name] for name in missing])
            for batch in _batches(missing, names, max_new_tokens, max_rows):
                trees = sample(decoding, [(n, names[n]) for n in batch], settings, criteria)
                new = [
                    GreedyResponse(
                        variant=variant,
                        prompt=tree.key,
                        ids=r.ids,
                        text=r.text,
                        truncated=r.truncated,
                    )
                    for tree in trees
                    for r in tree.finished
                ]
                append(log, new)
                known |= {(r.variant, r.prompt): r for r in new}
                task.advance(len(new))
    return [[known[variant_of(f), prompt_name(p)] for p in prompts] for f in variants]


def _batches(
    names: Sequence[str], prompts: Mapping[str, Prompt], new: int, max_rows: int
) -> Iterator[list[str]]:
    """Yield prompts of similar length together, within the limits of rows and tokens."""
    batch: list[str] = []
    for name in sorted(names, key=lambda name: len(prompts[name])):
        size = (len(batch) + 1) * (len(prompts[name]) + new)
        if batch and (len(batch) >= min(_ROWS, max_rows) or size > _TOKENS):
            yield batch
            batch = []
        batch.append(name)
    if batch:
        yield batch
