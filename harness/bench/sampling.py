"""Bench `sampling`: tokens that the tree and both early stops save, the same questions kept."""

import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

import torch

from harness.bench.base import BenchRow, bench
from harness.experiments.pipeline import Pipeline
from harness.judges.registry import make_judge
from harness.stages.pairing import pairs
from harness.stages.sample import (
    CHUNK,
    Prompted,
    QuestionRecord,
    batches,
    candidates,
    consistency,
    record_of,
)
from harness.store.places import cache_folder
from harness.store.progress import Progress
from harness.store.store import Store
from harness.studies.study import REFERENCE, SAMPLERS, Study
from hq.backends.opening import max_rows
from hq.backends.transformers.backend import TorchBackend
from hq.tracing.sampling import Tree, sample

_GENERATED = 16  # questions that transformers' generate answers
_INSTALL = "llama-cpp-python is not installed: pip install 'hq[llama]'"


@bench("sampling")
def run(study: str = "smollm2-facts", questions: int = 384) -> list[BenchRow]:
    """Samples the study's first questions twice: with the early stops, and to the end.

    `token_saving` is the tokens of all n responses to every question, each counted by itself and
    its end included, over the tokens that were computed until the quota was full: the same
    questions, settings and random numbers. The quota is the study's, scaled to the questions asked
    here, as are the questions between two looks at it. Prompts, which are read once either way, are
    not counted. `token_saving_same_questions` leaves the quota out. `retained_set_equal` says that
    both runs find the same consistent questions, with the same responses, and keep the same pairs
    at the quota. `tokens_per_second` counts computed tokens, in the time that reading the
    prompts is part of.

    The llama.cpp rows compare response tokens a second, of all n responses to the end, with hq's
    own torch sampler on the same questions, and with transformers' `generate` on the first of them.
    Takes about 3 minutes.
    """
    store = Store(cache_folder() / "store")
    with Pipeline(Study.load(study), store, Progress(quiet=True)) as pipeline:
        asked = pipeline.prompted[:questions]
        share = len(asked) / len(pipeline.prompted)
        quota = max(1, round(pipeline.study.sampling.quota * share))
        whole, slow = _sample(pipeline, asked, lambda _: True)
        early, seconds = _sample(pipeline, asked, consistency(asked, make_judge("rules")))
        theirs = _generate(pipeline, asked[:_GENERATED])
        llamacpp = _llamacpp(pipeline, asked)
    naive = sum(record.naive for record in whole.values())
    computed = sum(record.generated for record in early.values())
    needed = _until_full(early, asked, quota, max(1, round(CHUNK * share)))
    kept_pairs = pairs(candidates(needed, early), quota)
    same_pairs = kept_pairs == pairs(candidates(asked, whole), quota)
    spent = sum(early[p.question.id].generated for p in needed)
    kept = _consistent(early)
    return [
        BenchRow(
            name="token_saving",
            value=naive / spent,
            unit="x",
            goal=">= 5",
            note=f"{naive} tokens of all responses to all {len(asked)} questions, each counted by "
            f"itself ÷ {spent} tokens computed for the first {len(needed)} of them, which are "
            f"asked until {quota} pairs are kept",
        ),
        BenchRow(
            name="token_saving_same_questions",
            value=naive / computed,
            unit="x",
            note=f"the same {naive} tokens ÷ {computed} tokens computed for the same {len(asked)} "
            "questions, each given up at its first disagreement",
        ),
        BenchRow(
            name="token_saving_by_tree_alone",
            value=naive / sum(record.generated for record in whole.values()),
            unit="x",
        ),
        BenchRow(
            name="retained_set_equal",
            value=float(same_pairs and kept == _consistent(whole)),
            unit="",
            goal=">= 1",
            note=f"{len(kept)} consistent questions with their responses, and the "
            f"{len(kept_pairs)} pairs kept at the quota of {quota}",
        ),
        BenchRow(
            name="tokens_per_second",
            value=computed / seconds,
            unit="1/s",
            note=f"{seconds:.1f} s, and {slow:.1f} s to the end of every response",
        ),
        BenchRow(name="questions_per_second", value=len(asked) / seconds, unit="1/s"),
        _over("llamacpp_over_transformers", llamacpp, theirs, "generate", ">= 3"),
        _over("llamacpp_over_torch", llamacpp, naive / slow, "hq's sampler on torch"),
    ]


def _over(
    name: str, ours: float | None, theirs: float, whose: str, goal: str | None = None
) -> BenchRow:
    if ours is None:
        return BenchRow(name=name, value=None, unit="x", goal=goal, note=_INSTALL)
    note = f"{ours:.0f} response tokens a second at {SAMPLERS['llamacpp']}, {theirs:.0f} by {whose}"
    return BenchRow(name=name, value=ours / theirs, unit="x", goal=goal, note=note)


def _llamacpp(pipeline: Pipeline, asked: Sequence[Prompted]) -> float | None:
    """Response tokens a second of the llama.cpp sampler; None where it is not installed."""
    if find_spec("llama_cpp") is None:
        return None
    records, seconds = _sample(pipeline, asked, lambda _: True, SAMPLERS["llamacpp"])
    return sum(record.naive for record in records.values()) / seconds


def _generate(pipeline: Pipeline, asked: Sequence[Prompted]) -> float:
    """Response tokens a second of transformers' own sampling, question after question."""
    settings, ending = pipeline.study.sampling, pipeline.ending
    backend = pipeline.backend(REFERENCE)
    assert isinstance(backend, TorchBackend)
    torch.manual_seed(pipeline.study.seed)
    tokens, started = 0, time.perf_counter()
    for prompted in asked:
        made = backend.model.generate(
            torch.tensor([prompted.ids], device=backend.device),
            attention_mask=torch.ones(1, len(prompted.ids), device=backend.device),
            do_sample=True,
            num_return_sequences=settings.responses,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            stop_strings=list(ending.strings),
            tokenizer=pipeline.tokenizer,
            pad_token_id=min(ending.tokens),
        )
        for response in made[:, len(prompted.ids) :].tolist():
            ends = range(1, len(response))
            tokens += next((n for n in ends if ending.split(tuple(response[:n]))), len(response))
    return tokens / (time.perf_counter() - started)


def _sample(
    pipeline: Pipeline,
    asked: Sequence[Prompted],
    wanted: Callable[[Tree], bool],
    precision: str = REFERENCE,
) -> tuple[dict[str, QuestionRecord], float]:
    """The records by question, and the seconds that sampling took, prefix included."""
    decoding, study = pipeline.backend(precision).decoding(), pipeline.study
    settings, ending = study.sampling.settings(study.seed), pipeline.ending

    def trees() -> Iterator[Tree]:
        for batch in batches(asked, max_rows(precision) // settings.responses):
            yield from sample(
                decoding, [(p.question.id, p.ids) for p in batch], settings, ending, wanted
            )

    started = time.perf_counter()
    decoding.share([p.ids for p in asked])
    sampled = list(trees())
    seconds = time.perf_counter() - started
    questions = {p.question.id: p.question for p in asked}
    rules = make_judge("rules")
    records = (record_of(tree, questions[tree.key], rules, settings) for tree in sampled)
    return {record.id: record for record in records}, seconds


def _until_full(
    records: dict[str, QuestionRecord], asked: Sequence[Prompted], quota: int, chunk: int
) -> Sequence[Prompted]:
    """The questions that a study asks before it sees its quota full."""
    ends = range(chunk, len(asked), chunk)
    full = (e for e in ends if len(pairs(candidates(asked[:e], records), quota)) == quota)
    return asked[: next(full, len(asked))]


def _consistent(records: dict[str, QuestionRecord]) -> dict[str, frozenset[str]]:
    """The consistent questions with their responses."""
    return {
        record.id: frozenset(response.text for response in record.responses)
        for record in records.values()
        if record.hallucinated is not None
    }
