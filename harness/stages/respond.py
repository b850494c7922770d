"""Greedy responses to prompts while some neurons are scaled.

Responses are appended to a log, by prompt and by what is scaled: another α, another draw of neurons
or another trial asks only what was not asked yet, and a killed run goes on where it was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from harness.store.jsonl import append, read_log
from harness.store.node import GrowingLog
from harness.store.progress import Task
from harness.store.store import digest
from hq.backends.base import Backend
from hq.neurons.factors import Factors
from hq.tracing.sampling import Sampling, StopCriteria, sample

RESPONSES = GrowingLog("replies", sources=("hq.backends.opening", "harness.stages.mapping"))
LOG_FILE = "log.jsonl"
PLAIN = "plain"
_ROWS = 64  # prompts a batch: more do not decode faster on a CPU
_TOKENS = 6144  # of a batch, padding counted: what llama.cpp has cells for, and memory stays flat

Prompt = tuple[int, ...]


class GreedyResponse(BaseModel):
    """One greedy response: to which prompt, and what was scaled meanwhile."""

    model_config = ConfigDict(frozen=True)

    variant: str
    prompt: str
    ids: tuple[int, ...]
    text: str
    truncated: bool


def variant_of(factors: Factors) -> str:
    """A name for what is scaled: equal for equal factors, `plain` where every α is 1."""
    acting = sorted((*neuron, alpha) for neuron, alpha in factors.items() if alpha != 1)
    return digest(acting) if acting else PLAIN


def prompt_name(prompt: Prompt) -> str:
    """A name for a prompt: a digest of its token ids."""
    return digest(prompt)


def respond(
    log: Path,
    open_backend: Callable[[], Backend],
    prompts: Sequence[Prompt],
    variants: Sequence[Factors],
    ending: StopCriteria,
    max_new_tokens: int,
    task: Task,
    max_rows: int = 1 << 16,
) -> list[list[GreedyResponse]]:
    """The response to each prompt under each variant, in the order in which they are given.

    Those that `log` lacks are generated and appended to it; `open_backend` is called if any is.
    """
    known = {(r.variant, r.prompt): r for r in read_log(log, GreedyResponse)}
    names = {prompt_name(prompt): prompt for prompt in prompts}
    settings = Sampling(responses=1, temperature=0, max_new_tokens=max_new_tokens)
    for factors in variants:
        variant = variant_of(factors)
        lacking = [name for name in names if (variant, name) not in known]
        task.advance(len(names) - len(lacking))
        if not lacking:
            continue
        backend = open_backend()
        decoding = backend.decoding()
        with backend.scale({n: a for n, a in factors.items() if a != 1}):
            decoding.share([names[name] for name in lacking])
            for batch in _batches(lacking, names, max_new_tokens, max_rows):
                trees = sample(decoding, [(n, names[n]) for n in batch], settings, ending)
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
    """Prompts of like length together, within a limit of rows and of tokens."""
    batch: list[str] = []
    for name in sorted(names, key=lambda name: len(prompts[name])):
        size = (len(batch) + 1) * (len(prompts[name]) + new)
        if batch and (len(batch) >= min(_ROWS, max_rows) or size > _TOKENS):
            yield batch
            batch = []
        batch.append(name)
    if batch:
        yield batch
