"""Bench `cett`: what CETT costs over a plain forward, against hprobes, and in memory.

All times are of one process, alternating, and reported as ratios: a shared machine's pace cancels.
"""

from collections.abc import Callable, Sequence
from statistics import median

import torch

from harness.bench import wide
from harness.bench.base import BenchRow, bench, seconds_of
from harness.bench.hprobes import Hprobes
from harness.models.sources import EMBEDDED_NAME, resolve_model
from harness.scenarios.base import load
from harness.scenarios.prompts import FewShot
from hq.backends.batching import plan
from hq.backends.transformers.backend import TorchBackend
from hq.backends.transformers.prefix import PrefixCache
from hq.neurons.cett import MEASURES, SPANS, Measure, Span
from hq.neurons.prompt_response import PromptResponse

What = tuple[tuple[Measure, ...], tuple[Span, ...]]

_STUDY: What = (("sum", "contribution"), ("answer",))  # what a study traces by default
_DUAL_SPAN: What = (("output",), ("answer", "other"))  # what hprobes computes
_INSTALL = "hprobes is not installed: pip install --no-deps 'hprobes==0.11.*'"


@bench("cett")
def run(
    seed: int = 0, texts: int = 64, repeats: int = 9, model: str = EMBEDDED_NAME
) -> list[BenchRow]:
    """Ratios on the embedded model and questions of `facts`. Takes about 3 minutes, 2 GB."""
    with TorchBackend(resolve_model(model), "fp16") as backend:
        apart, shared = exchanges(backend, seed, texts)
        tokens = sum(map(len, apart)) / texts
        return [
            _over_forward("cett_over_forward", backend, apart, _STUDY, repeats, goal="<= 1.10"),
            _over_forward("cett_over_forward_all", backend, apart, (MEASURES, SPANS), repeats),
            _over_hprobes(
                "speedup_over_hprobes", backend, apart, ">= 1.8", f"{tokens:.0f} tokens a text"
            ),
            _over_hprobes(
                "speedup_over_hprobes_shared_prefix",
                backend,
                shared,
                ">= 3",
                f"the same after the {len(shared[0]) - len(apart[0])} tokens of a 4-shot prompt",
            ),
            BenchRow(
                name="peak_extra_mib_7b_width",
                value=wide.peak_extra_mib(seed),
                unit="MiB",
                goal="<= 1024",
                note=wide.NOTE,
            ),
        ]


def exchanges(
    backend: TorchBackend, seed: int, count: int
) -> tuple[list[PromptResponse], list[PromptResponse]]:
    """Questions of `facts` with their answers: bare, and after a shared 4-shot prefix."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backend.model.name_or_path)
    questions = load("facts", seed=seed, limit=count)

    def asked(encode: Callable[[str], Sequence[int]]) -> list[PromptResponse]:
        answers = (tokenizer(f" {q.aliases[0]}", add_special_tokens=False) for q in questions)
        pairs = zip(questions, answers, strict=True)
        return [PromptResponse(tuple(encode(q.question)), tuple(a["input_ids"])) for q, a in pairs]

    few_shot = FewShot()
    return (
        asked(lambda question: tokenizer(f"Q: {question}\nA:")["input_ids"]),
        asked(lambda question: few_shot.encode(tokenizer, question)),
    )


def _over_forward(
    name: str,
    backend: TorchBackend,
    texts: Sequence[PromptResponse],
    what: What,
    repeats: int,
    goal: str | None = None,
) -> BenchRow:
    """Time of a trace over that of the body alone, at the same batches."""
    measures, spans = what
    pairs = [
        (
            seconds_of(lambda: _forward(backend, texts)),
            seconds_of(lambda: _trace(backend, texts, what)),
        )
        for _ in range(repeats + 1)
    ][1:]  # the first pair warms up
    return BenchRow(
        name=name,
        value=median(traced / plain for plain, traced in pairs),
        unit="x",
        goal=goal,
        note=f"{'+'.join(measures)} over {'+'.join(spans)}; body alone "
        f"{median(plain for plain, _ in pairs):.2f} s, median of {repeats} pairs",
    )


def _over_hprobes(
    name: str, backend: TorchBackend, texts: Sequence[PromptResponse], goal: str, note: str
) -> BenchRow:
    """Time of hprobes, which takes text after text, over that of a trace."""
    theirs = Hprobes.of(backend)
    if theirs is None:
        return BenchRow(name=name, value=None, unit="x", goal=goal, note=_INSTALL)
    pairs = [
        (
            seconds_of(lambda: _trace(backend, texts, _DUAL_SPAN)),
            seconds_of(lambda: theirs.trace(texts)),
        )
        for _ in range(3)
    ]
    error = theirs.difference(backend, texts[:4])
    return BenchRow(
        name=name,
        value=median(other / ours for ours, other in pairs),
        unit="x",
        goal=goal,
        note=f"{note}; hprobes {median(other for _, other in pairs):.2f} s; largest relative "
        f"difference of results {error:.1e}",
    )


def _trace(backend: TorchBackend, texts: Sequence[PromptResponse], what: What) -> None:
    for _ in backend.trace(texts, *what):
        pass


def _forward(backend: TorchBackend, texts: Sequence[PromptResponse]) -> None:
    """The body over the batches of a trace, prefix once, with nothing read."""
    layout = plan(texts, backend.token_budget)
    with torch.inference_mode():
        prefix = PrefixCache(backend.decoder, layout.prefix, backend.device)
        for rows in layout.batches:
            ids = backend.padded([texts[row] for row in rows], len(prefix))
            backend.decoder(ids, **prefix.inputs(len(rows)))
