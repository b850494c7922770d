"""Bench `cett`: what CETT costs over a plain forward pass, against hprobes, and in memory.

Times are alternating measurements in one process, reported as ratios, so that the speed of a
shared machine cancels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from harness.bench import wide_model
from harness.bench.base import BenchRow, alternate, median_first, median_ratio, seconds_of
from harness.models.packaged import EMBEDDED_NAME
from harness.models.sources import resolve_model
from harness.scenarios.facts.questions import load_facts
from harness.scenarios.prompts import FewShot
from hq.backends.batching import plan
from hq.backends.transformers.backend import TorchBackend
from hq.backends.transformers.prefix import PrefixCache
from hq.neurons.cett import MEASURES, SPANS, Measure, Span
from hq.neurons.prompt_response import PromptResponse

MeasuresAndSpans = tuple[tuple[Measure, ...], tuple[Span, ...]]

_STUDY: MeasuresAndSpans = (("sum", "contribution"), ("answer",))  # a study's default
_DUAL_SPAN: MeasuresAndSpans = (("output",), ("answer", "other"))  # what hprobes computes
_INSTALL = "hprobes is not installed: pip install --no-deps 'hprobes==0.11.*'"


def bench_cett(
    seed: int = 0, texts: int = 64, repeats: int = 9, model: str = EMBEDDED_NAME
) -> list[BenchRow]:
    """Measure the embedded model on questions of `facts`. Takes about 3 minutes and 2 GB.

    Args:
        seed: Seed of the questions.
        texts: Number of texts.
        repeats: Pairs of measurements.
        model: A checkpoint, or the embedded model.
    """
    with TorchBackend(resolve_model(model), "fp16") as backend:
        bare, shared = question_texts(backend, seed, texts)
        tokens = sum(map(len, bare)) / texts
        return [
            _over_forward("cett_over_forward", backend, bare, _STUDY, repeats, goal="<= 1.10"),
            _over_forward("cett_over_forward_all", backend, bare, (MEASURES, SPANS), repeats),
            _over_hprobes(
                "speedup_over_hprobes", backend, bare, ">= 1.8", f"{tokens:.0f} tokens a text"
            ),
            _over_hprobes(
                "speedup_over_hprobes_shared_prefix",
                backend,
                shared,
                ">= 3",
                f"the same after the {len(shared[0]) - len(bare[0])} tokens of a 4-shot prompt",
            ),
            BenchRow(
                name="peak_extra_mib_7b_width",
                value=wide_model.peak_extra_mib(seed),
                unit="MiB",
                goal="<= 1024",
                note=wide_model.NOTE,
            ),
        ]


def question_texts(
    backend: TorchBackend, seed: int, count: int
) -> tuple[list[PromptResponse], list[PromptResponse]]:
    """Return questions of `facts` with their answers: bare, and after a shared 4-shot prefix."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backend.model.name_or_path)
    questions = load_facts(seed, count)

    def encoded(encode: Callable[[str], Sequence[int]]) -> list[PromptResponse]:
        answers = (tokenizer(f" {q.aliases[0]}", add_special_tokens=False) for q in questions)
        pairs = zip(questions, answers, strict=True)
        return [PromptResponse(tuple(encode(q.question)), tuple(a["input_ids"])) for q, a in pairs]

    few_shot = FewShot()
    return (
        encoded(lambda question: tokenizer(f"Q: {question}\nA:")["input_ids"]),
        encoded(lambda question: few_shot.encode(tokenizer, question)),
    )


def _over_forward(
    name: str,
    backend: TorchBackend,
    texts: Sequence[PromptResponse],
    what: MeasuresAndSpans,
    repeats: int,
    goal: str | None = None,
) -> BenchRow:
    """Time of a trace over that of the decoder alone, in the same batches."""
    measures, spans = what
    pairs = alternate(
        partial(seconds_of, lambda: _forward(backend, texts)),
        partial(seconds_of, lambda: _trace(backend, texts, what)),
        repeats,
    )
    return BenchRow(
        name=name,
        value=median_ratio(pairs),
        unit="x",
        goal=goal,
        note=f"{'+'.join(measures)} over {'+'.join(spans)}; decoder alone "
        f"{median_first(pairs):.2f} s, median of {repeats} pairs",
    )


def _over_hprobes(
    name: str, backend: TorchBackend, texts: Sequence[PromptResponse], goal: str, note: str
) -> BenchRow:
    """Time of hprobes, which reads one text at a time, over that of a trace."""
    hprobes = Hprobes.of(backend)
    if hprobes is None:
        return BenchRow(name=name, value=None, unit="x", goal=goal, note=_INSTALL)
    pairs = [
        (
            seconds_of(lambda: _trace(backend, texts, _DUAL_SPAN)),
            seconds_of(lambda: hprobes.trace(texts)),
        )
        for _ in range(3)
    ]
    error = hprobes.largest_difference(backend, texts[:4])
    seconds = median_first([(hprobes_s, trace_s) for trace_s, hprobes_s in pairs])
    return BenchRow(
        name=name,
        value=median_ratio(pairs),
        unit="x",
        goal=goal,
        note=f"{note}; hprobes {seconds:.2f} s; largest relative difference of results {error:.1e}",
    )


def _trace(backend: TorchBackend, texts: Sequence[PromptResponse], what: MeasuresAndSpans) -> None:
    for _ in backend.trace(texts, *what):
        pass


def _forward(backend: TorchBackend, texts: Sequence[PromptResponse]) -> None:
    """Run the decoder over the batches of a trace, the shared prefix once, without hooks."""
    layout = plan(texts, backend.token_budget)
    with torch.inference_mode():
        prefix = PrefixCache(backend.decoder, layout.prefix, backend.device)
        for rows in layout.batches:
            ids = backend.padded([texts[row] for row in rows], len(prefix))
            backend.decoder(ids, **prefix.inputs(len(rows)))


class Hprobes:
    """hprobes 0.11: its `output`-CETT, over answer and other tokens, of a backend's model."""

    def __init__(self, module: Any, model: Any, layers: list[int]) -> None:
        self._module = module
        self._model = model
        self._layers = layers
        self._norms = module.precompute_col_norms(model, layers)

    @classmethod
    def of(cls, backend: TorchBackend) -> Self | None:
        """Return hprobes on this backend's model, or None if it is not installed."""
        if find_spec("hprobes") is None:
            return None
        layers = list(range(backend.identity.n_layers))
        return cls(import_module("hprobes.cett"), backend.model, layers)

    def trace(self, texts: Sequence[PromptResponse]) -> list[Float[Tensor, "span p"]]:
        """Return for each text the means over the answer's tokens and over all other tokens."""
        return [torch.stack(self._means(text)) for text in texts]

    def largest_difference(self, backend: TorchBackend, texts: Sequence[PromptResponse]) -> float:
        """Return the largest relative difference in norm between its traces and the backend's."""
        largest = 0.0
        for batch in backend.trace(texts, *_DUAL_SPAN):
            values = torch.from_numpy(batch.values[:, 0]).flatten(2)
            expected = torch.stack(self.trace([texts[row] for row in batch.rows]))
            errors = (values - expected).norm(dim=-1) / expected.norm(dim=-1)
            largest = max(largest, errors.max().item())
        return largest

    def _means(self, text: PromptResponse) -> tuple[Tensor, Tensor]:
        tokens = {"input_ids": torch.tensor([text.ids])}
        start, end = len(text.prompt), len(text)
        means: tuple[Tensor, Tensor] = self._module.forward_cett_dual_span(
            self._model, tokens, start, end, self._layers, self._norms
        )
        return means
