"""Trials as they are put to a model: which of them count for it, and as which tokens."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from harness.judges.base import Verdict
from harness.judges.rules import RuleJudge
from harness.scenarios.base import Trial, as_question
from harness.scenarios.prompts import PromptForm
from harness.stages import splits
from harness.stages.respond import GreedyResponse
from hq.errors import HQError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_CHUNK = 256  # candidates whose first question is asked together
Answer = Callable[[Sequence[tuple[int, ...]]], list[GreedyResponse]]


@dataclass(frozen=True, slots=True)
class AskedTrial:
    """A trial, its prompt, and the group of trials that it shares an entity with."""

    trial: Trial
    ids: tuple[int, ...]
    component: str


def asked(
    name: str,
    trials: Sequence[Trial],
    form: PromptForm,
    tokenizer: "Tokenizer",
    answer: Answer,
    wanted: int,
) -> dict[str, list[AskedTrial]]:
    """The first `wanted` trials of each kind that count, by the scenario's name and the kind's.

    A trial with a first question counts where `answer`, the unscaled reference, gives a right
    answer to it. Raises HQError for a kind of which none counts.
    """
    kinds = sorted({trial.kind for trial in trials})
    component = splits.components(trials)
    kept: dict[str, list[AskedTrial]] = {kind: [] for kind in kinds}
    candidates = iter(trials)
    while chunk := list(islice(candidates, _CHUNK)):
        open_kinds = {kind for kind in kinds if len(kept[kind]) < wanted}
        if not open_kinds:
            break
        chunk = [trial for trial in chunk if trial.kind in open_kinds]
        for trial, before in _counting(chunk, form, tokenizer, answer):
            if len(kept[trial.kind]) < wanted:
                ids = tuple(form.encode(tokenizer, trial.prompt, before))
                kept[trial.kind].append(AskedTrial(trial, ids, component[trial.id]))
    empty = [kind for kind in kinds if not kept[kind]]
    if empty or not kinds:
        raise HQError(
            f"No trial of {label(name, *empty[:1])} counts, as the model answers none of the "
            "first questions rightly: leave the scenario out, or give it an easier file."
        )
    return {label(name, kind): found for kind, found in kept.items()}


def label(name: str, kind: str = "") -> str:
    """What a kind of trials is called in tables."""
    return f"{name}:{kind}" if kind else name


def scenario(label: str) -> str:
    """The scenario of a label."""
    return label.partition(":")[0]


def _counting(
    trials: Sequence[Trial], form: PromptForm, tokenizer: "Tokenizer", answer: Answer
) -> Iterator[tuple[Trial, tuple[tuple[str, str], ...]]]:
    """Trials that count, each with what was said before it, in their order."""
    firsts = {
        trial.first: tuple(form.encode(tokenizer, trial.first)) for trial in trials if trial.first
    }
    given = dict(zip(firsts, answer(list(firsts.values())), strict=True))
    judge = RuleJudge()
    for trial in trials:
        if not trial.first:
            yield trial, ()
            continue
        reply = given[trial.first]
        question = as_question(trial, trial.first)
        if judge.judge(reply.text, question, reply.truncated) is Verdict.RIGHT:
            yield trial, ((trial.first, reply.text.strip()),) if trial.dialogue else ()
