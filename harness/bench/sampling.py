"""Bench `sampling`: tokens that the prefix tree and early stopping save, and tokens per second."""

import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

import torch

from harness.bench.base import BenchRow
from harness.judges.registry import make_judge
from harness.stages import mapping
from harness.stages.materials import Materials
from harness.stages.pairing import pairs
from harness.stages.sample import (
    CHUNK,
    QuestionRecord,
    batches,
    candidates,
    consistency,
    record_of,
)
from harness.stages.samples import Prompted
from harness.store.opening import open_store
from harness.store.progress import Progress
from harness.store.runner import Runner
from harness.studies.study import REFERENCE, SAMPLERS, Balance, Study
from hq.backends.base import Backend
from hq.backends.opening import max_rows
from hq.backends.transformers.backend import TorchBackend
from hq.tracing.sampling import Tree, sample

_GENERATED = 16  # questions that transformers' `generate` answers
_INSTALL = "llama-cpp-python is not installed: pip install 'hq[llama]'"


def bench_sampling(study: str = "smollm2-facts", questions: int = 384) -> list[BenchRow]:
    """Sample a study's first questions with early stopping and without. Takes about 3 minutes.

    Both runs have the same questions, settings and random numbers. Prompts are not counted, as
    both read them once. The rows are:

    - `token_saving`: tokens of all n responses to every question, each counted separately with its
      end, over the tokens computed until the quota is full. The quota, and the interval at which it
      is checked, are the study's, scaled to the number of questions.
    - `token_saving_same_questions`: the same without the quota.
    - `retained_set_equal`: 1 if both runs find the same consistent questions with the same
      responses, and keep the same pairs at the quota.
    - `tokens_per_second`: computed tokens over the time, which includes reading the prompts.
    - `llamacpp_over_…`: response tokens per second of llama.cpp over those of hq's torch sampler on
      the same questions, and over those of transformers' `generate` on the first of them.

    Args:
        study: Name or file of a study.
        questions: Number of questions.
    """
    store = open_store()
    with Materials(Study.load(study)) as m:
        runner = Runner(store, Progress(quiet=True), m)
        prompted = m.prompted[:questions]
        share = len(prompted) / len(m.prompted)
        quota, balance = max(1, round(m.study.sampling.quota * share)), m.study.sampling.balance
        full, full_seconds = _sample(m, runner, prompted, lambda _: True)
        early, seconds = _sample(m, runner, prompted, consistency(prompted, make_judge("rules")))
        generate_speed = _generate_speed(m, runner, prompted[:_GENERATED])
        llamacpp_speed = _llamacpp_speed(m, runner, prompted)
    naive = sum(record.naive for record in full.values())
    computed = sum(record.generated for record in early.values())
    needed = _until_full(early, prompted, quota, balance, max(1, round(CHUNK * share)))
    early_pairs = pairs(candidates(needed, early, balance), quota)
    same_pairs = early_pairs == pairs(candidates(prompted, full, balance), quota)
    spent = sum(early[p.question.id].generated for p in needed)
    consistent = _consistent(early)
    return [
        BenchRow(
            name="token_saving",
            value=naive / spent,
            unit="x",
            goal=">= 5",
            note=f"{naive} tokens of all responses to all {len(prompted)} questions, each counted "
            f"separately ÷ {spent} tokens computed for the first {len(needed)} of them, after "
            f"which {quota} pairs are kept",
        ),
        BenchRow(
            name="token_saving_same_questions",
            value=naive / computed,
            unit="x",
            note=f"the same {naive} tokens ÷ {computed} tokens computed for the same "
            f"{len(prompted)} questions, each stopped at its first disagreement",
        ),
        BenchRow(
            name="token_saving_by_tree_alone",
            value=naive / sum(record.generated for record in full.values()),
            unit="x",
        ),
        BenchRow(
            name="retained_set_equal",
            value=float(same_pairs and consistent == _consistent(full)),
            unit="",
            goal=">= 1",
            note=f"{len(consistent)} consistent questions with their responses, and the "
            f"{len(early_pairs)} pairs kept at the quota of {quota}",
        ),
        BenchRow(
            name="tokens_per_second",
            value=computed / seconds,
            unit="1/s",
            note=f"{seconds:.1f} s, and {full_seconds:.1f} s to the end of every response",
        ),
        BenchRow(name="questions_per_second", value=len(prompted) / seconds, unit="1/s"),
        _over("llamacpp_over_transformers", llamacpp_speed, generate_speed, "generate", ">= 3"),
        _over("llamacpp_over_torch", llamacpp_speed, naive / full_seconds, "hq's sampler on torch"),
    ]


def _backend(m: Materials, runner: Runner, precision: str) -> Backend:
    """Return the model at a precision, with its file made if it is missing."""
    outputs = runner.run([mapping.node(m, precision)])
    return mapping.opened(m, outputs, precision)


def _over(
    name: str, llamacpp: float | None, peer: float, peer_name: str, goal: str | None = None
) -> BenchRow:
    """The ratio of two speeds, in response tokens per second."""
    if llamacpp is None:
        return BenchRow(name=name, value=None, unit="x", goal=goal, note=_INSTALL)
    note = (
        f"{llamacpp:.0f} response tokens a second at {SAMPLERS['llamacpp']}, {peer:.0f} by "
        f"{peer_name}"
    )
    return BenchRow(name=name, value=llamacpp / peer, unit="x", goal=goal, note=note)


def _llamacpp_speed(m: Materials, runner: Runner, prompted: Sequence[Prompted]) -> float | None:
    """Response tokens per second of the llama.cpp sampler; None if it is not installed."""
    if find_spec("llama_cpp") is None:
        return None
    records, seconds = _sample(m, runner, prompted, lambda _: True, SAMPLERS["llamacpp"])
    return sum(record.naive for record in records.values()) / seconds


def _generate_speed(m: Materials, runner: Runner, prompted: Sequence[Prompted]) -> float:
    """Response tokens per second of transformers' `generate`, one question at a time."""
    settings, stop = m.study.sampling, m.stop_criteria
    backend = _backend(m, runner, REFERENCE)
    assert isinstance(backend, TorchBackend)
    torch.manual_seed(m.study.seed)
    tokens, started = 0, time.perf_counter()
    for one in prompted:
        output = backend.model.generate(
            torch.tensor([one.ids], device=backend.device),
            attention_mask=torch.ones(1, len(one.ids), device=backend.device),
            do_sample=True,
            num_return_sequences=settings.responses,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            stop_strings=list(stop.strings),
            tokenizer=m.tokenizer,
            pad_token_id=min(stop.tokens),
        )
        for response in output[:, len(one.ids) :].tolist():
            ends = range(1, len(response))
            tokens += next((n for n in ends if stop.split(tuple(response[:n]))), len(response))
    return tokens / (time.perf_counter() - started)


def _sample(
    m: Materials,
    runner: Runner,
    prompted: Sequence[Prompted],
    wanted: Callable[[Tree], bool],
    precision: str = REFERENCE,
) -> tuple[dict[str, QuestionRecord], float]:
    """Records by question, and the seconds of sampling including the shared prefix."""
    decoding, study = _backend(m, runner, precision).decoding(), m.study
    settings, stop = study.sampling.settings(study.seed), m.stop_criteria

    def trees() -> Iterator[Tree]:
        for batch in batches(prompted, max_rows(precision) // settings.responses):
            yield from sample(
                decoding, [(p.question.id, p.ids) for p in batch], settings, stop, wanted
            )

    started = time.perf_counter()
    decoding.share([p.ids for p in prompted])
    sampled = list(trees())
    seconds = time.perf_counter() - started
    questions = {p.question.id: p.question for p in prompted}
    rules = make_judge("rules")
    records = (record_of(tree, questions[tree.key], rules, settings) for tree in sampled)
    return {record.id: record for record in records}, seconds


def _until_full(
    records: dict[str, QuestionRecord],
    prompted: Sequence[Prompted],
    quota: int,
    balance: Balance,
    chunk: int,
) -> Sequence[Prompted]:
    """The questions that a study asks before it finds its quota full."""
    ends = range(chunk, len(prompted), chunk)
    found = (pairs(candidates(prompted[:end], records, balance), quota) for end in ends)
    full = (end for end, closed in zip(ends, found, strict=True) if len(closed) == quota)
    return prompted[: next(full, len(prompted))]


def _consistent(records: dict[str, QuestionRecord]) -> dict[str, frozenset[str]]:
    """The responses to each consistent question."""
    return {
        record.id: frozenset(response.text for response in record.responses)
        for record in records.values()
        if record.hallucinated is not None
    }
