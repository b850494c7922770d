"""The llama.cpp backend: a GGUF file, observed and scaled inside llama.cpp's own graph."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from hq.backends.base import (
    Predictions,
    TraceBatch,
    join_predictions,
    require_finite,
    require_known,
    scales_changed,
)
from hq.backends.batching import Plan, plan, span_weights
from hq.backends.llamacpp.decoding import LlamaDecoding
from hq.backends.llamacpp.packed_batch import MAX_ROWS, PackedBatch, read_prefix
from hq.errors import HQError
from hq.gguf.ffn_weights import of_gguf
from hq.gguf.file import GGUFFile
from hq.gguf.types import GGMLType
from hq.llamacpp.graph import CPU
from hq.llamacpp.model import Context, LlamaModel
from hq.llamacpp.observer import ActivationScales, Factors, GraphObserver
from hq.models.audit import AuditRow
from hq.models.ffn_weights import FFNs
from hq.models.head import Head, Reference
from hq.models.logits import blocks_of, distributions
from hq.neurons.cett import Measure, Span
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse
from hq.precisions.gguf import require_kind

TOKEN_BUDGET = 512  # tokens a decode: each attends to all cells of its batch, so more costs more
VALUE_BUDGET = 1 << 25  # float32 values of a batch of traces: 128 MiB
LOGIT_BUDGET = 1 << 25  # logits of a decode, which llama.cpp holds at once: 128 MiB

BatchPart = tuple[int, Float[np.ndarray, "token vocab"]]


class LlamaBackend:
    """One GGUF file. A context manager; `close` frees the weights.

    `n_gpu_layers` counts as llama.cpp's does: 0 runs on the CPU alone, -1 on the GPU alone.

    Raises HQError for a file that is damaged, an architecture whose FFN products cannot be
    observed, another quantization than the precision names, and GPU layers that do not run on one.
    """

    missing: frozenset[int] = frozenset()
    unmatched: frozenset[int] = frozenset()

    def __init__(
        self,
        path: Path,
        precision: str = "gguf-source",
        token_budget: int = TOKEN_BUDGET,
        model_identity: ModelIdentity | None = None,
        threads: int = 1,
        n_gpu_layers: int = 0,
    ) -> None:
        self.precision = precision
        self.file = GGUFFile(path)
        require_kind(self.file, precision)
        self.identity = model_identity or self.file.identity
        self.token_budget = token_budget
        self.threads = threads
        self.model = LlamaModel(*self.file.paths, n_gpu_layers=n_gpu_layers)
        try:
            self._products = self.model.products(self.file.n_layers, self.file.d_ff)
            self._require_placed(n_gpu_layers)
        except BaseException:
            self.close()
            raise
        self.scales = ActivationScales(self.file.n_layers, self.file.d_ff)

    def __enter__(self) -> "LlamaBackend":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the weights, and every context made of them first."""
        self.model.close()

    @property
    def compute(self) -> str:
        """What the FFNs' arithmetic runs in, as `compute_of` names it; `mixed: …` for several."""
        found = sorted({r.compute for r in self.audit() if r.module.startswith("ffn")})
        return found[0] if len(found) == 1 else f"mixed: {', '.join(found)}"

    @property
    def device(self) -> str:
        """Where the FFN products were computed: CPU, CUDA0, or several."""
        return ", ".join(sorted(set(self._products.places)))

    @property
    def norms(self) -> Float[np.ndarray, "layer d_ff"]:
        """‖W_down[:, i]‖₂ of the file's own dequantized blocks, float32."""
        return self.file.norms

    def audit(self) -> list[AuditRow]:
        """The projections inside the layers, counted by the type that each really got."""
        places = self._products.places
        return self.file.audit(lambda layer, kind: compute_of(kind, places[layer]))

    def weight_bytes(self) -> int:
        """Bytes of all tensors in the file."""
        return self.file.weight_bytes()

    def context(self, tokens: int, sequences: int, batch: int) -> tuple[Context, GraphObserver]:
        """A context of this size, with the tap that reads and scales in it."""
        tap = GraphObserver(self._products, self.norms, batch, self.scales, self.model.on_host)
        context = self.model.context(
            tap, tokens=tokens, sequences=sequences, batch=batch, threads=self.threads
        )
        return context, tap

    def ffns(self) -> FFNs:
        """The weights of each layer's FFN, dequantized."""
        return of_gguf(self.file)

    def trace(
        self,
        exchanges: Sequence[PromptResponse],
        measures: tuple[Measure, ...] = ("sum",),
        spans: tuple[Span, ...] = ("answer",),
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[TraceBatch]:
        """Means of each measure over each span, for every neuron, added up inside llama.cpp.

        A prefix that all prompts share is computed once; its tokens still count in `other`.
        Raises HQError for token ids that the model lacks, for activations that are not finite, and
        if the scales change before the last batch.
        """
        require_known(exchanges, self.model.vocabulary, self.identity.name)
        width = len(measures) * len(spans) * self.identity.n_layers * self.identity.d_ff
        if not exchanges:
            return
        self.require_length(max(map(len, exchanges)))
        layout = plan(exchanges, self.token_budget, min(MAX_ROWS, VALUE_BUDGET // width))
        context, tap = self._context_for(layout, exchanges)
        factors = self.scales.factors
        with closing(context):
            shape = (len(measures), len(spans), self.identity.n_layers, self.identity.d_ff)
            prefix = np.zeros((1, len(measures), 1, *shape[2:]), dtype=np.float32)
            ones = np.full((len(layout.prefix), 1), "other" in spans, dtype=np.float32)
            with tap.traced(np.zeros(len(ones), dtype=np.int64), ones, prefix, measures):
                read_prefix(context, layout.prefix)
            for number, rows in enumerate(layout.batches):
                if number not in skip:
                    self._require_unchanged(factors)
                    batch = [exchanges[row] for row in rows]
                    values = np.zeros((len(rows), *shape), dtype=np.float32)
                    start = len(layout.prefix)
                    self._trace_batch(context, tap, batch, start, values, measures, spans)
                    if "other" in spans:
                        counts = np.array([len(e.prompt) for e in batch], dtype=np.float32)
                        share = prefix[:, :, 0] / counts.reshape(-1, 1, 1, 1)
                        values[:, :, spans.index("other")] += share
                    require_finite(values, self.precision)
                    yield TraceBatch(
                        number, rows, values, measures, spans, self.identity, self.precision
                    )

    def _trace_batch(
        self,
        context: Context,
        tap: GraphObserver,
        batch: Sequence[PromptResponse],
        start: int,
        values: Float[np.ndarray, "batch measure span layer d_ff"],
        measures: tuple[Measure, ...],
        spans: tuple[Span, ...],
    ) -> None:
        tails = PackedBatch(batch, start)
        padded = span_weights(batch, start, max(tails.lengths), spans)
        weights = padded.transpose(0, 2, 1)[tails.rows, tails.places]  # [token, span]
        with tails.held(context):
            for piece in tails.pieces(context.batch):
                mine = np.ascontiguousarray(weights[piece])
                with tap.traced(tails.rows[piece].copy(), mine, values, measures):
                    tails.decode(context, piece, mine.any(axis=1))

    def logits(
        self, exchanges: Sequence[PromptResponse]
    ) -> Iterator[tuple[int, Float[np.ndarray, "token vocab"]]]:
        """(row, logits that predict each token of its response), in batches by length.

        Raises HQError for token ids that the model lacks, and if the scales change before the last
        batch.
        """
        for _, rows, batch, parts in self._logits(exchanges, frozenset()):
            found = np.concatenate([logits.copy() for _, logits in parts])
            ends = np.cumsum([len(exchange.response) for exchange in batch])
            yield from zip(map(int, rows), np.split(found, ends[:-1]), strict=True)

    def predictions(
        self,
        exchanges: Sequence[PromptResponse],
        reference: Reference | None = None,
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[Predictions]:
        """How each response token is predicted, from llama.cpp's own buffer of logits.

        Raises HQError for token ids that the model lacks, and for logits that are not finite.
        """
        for number, rows, batch, parts in self._logits(exchanges, skip):
            chosen = torch.tensor([token for e in batch for token in e.response])
            found = []
            for begin, logits in parts:
                here = slice(begin, begin + len(logits))
                theirs = None if reference is None else reference.blocks(rows, tokens=here)
                found.append(distributions(blocks_of(logits), chosen[here], theirs))
            yield join_predictions(number, rows, batch, found, None, self.precision)

    @property
    def head(self) -> Head:
        """Raises HQError: llama.cpp gives logits alone."""
        raise HQError("llama.cpp does not give last hidden states: take fp16 as the reference.")

    def _logits(
        self, exchanges: Sequence[PromptResponse], skip: frozenset[int]
    ) -> Iterator[tuple[int, Int[np.ndarray, " batch"], list[PromptResponse], Iterator[BatchPart]]]:
        """(number, rows, exchanges, logits in parts) of each batch.

        A part is the index of its first response token, and logits that the next part overwrites.
        """
        require_known(exchanges, self.model.vocabulary, self.identity.name)
        if not exchanges:
            return
        self.require_length(max(map(len, exchanges)))
        budget = min(self.token_budget, max(1, LOGIT_BUDGET // self.model.vocabulary))
        layout = plan(exchanges, budget, MAX_ROWS)
        context, _ = self._context_for(layout, exchanges)
        factors = self.scales.factors
        with closing(context):
            read_prefix(context, layout.prefix)
            for number, rows in enumerate(layout.batches):
                if number in skip:
                    continue
                self._require_unchanged(factors)
                batch = [exchanges[row] for row in rows]
                tails = PackedBatch(batch, len(layout.prefix))
                answers = np.array([len(exchange.response) for exchange in batch])
                ends = np.array(tails.lengths) - 1  # the last token predicts nothing that is asked
                first, end = (ends - answers)[tails.rows], ends[tails.rows]
                wanted = np.logical_and(tails.places >= first, tails.places < end)
                with tails.held(context):
                    yield number, rows, batch, _parts(context, tails, wanted)

    def decoding(self) -> LlamaDecoding:
        """A new set of continuations."""
        return LlamaDecoding(lambda *sizes: self.context(*sizes)[0], self.require_length)

    def require_length(self, tokens: int) -> None:
        """Raises HQError for a text longer than the model's context, where it computes otherwise.

        A sliding window that llama.cpp does not know ends the context that hq writes.
        """
        limit = self.file.metadata.get(f"{self.file.architecture}.context_length")
        if isinstance(limit, int) and tokens > limit:
            raise HQError(
                f"A text of {tokens} tokens is longer than the context of {self.file.path.name}, "
                f"{limit} tokens: shorten it."
            )

    def scale(self, factors: Mapping[tuple[int, int], float]) -> AbstractContextManager[None]:
        """h_i ← α·h_i for each (layer, index) and its α, while the context lasts."""
        return self.scales.scaled(factors)

    def _require_placed(self, n_gpu_layers: int) -> None:
        """Raises HQError if the FFNs do not run where `n_gpu_layers` puts them.

        llama.cpp counts the output as a layer, so that 1 moves no FFN.
        """
        layers = self.file.n_layers
        elsewhere = sum(place != CPU for place in self._products.places)
        least = layers if n_gpu_layers == -1 or n_gpu_layers > layers else min(n_gpu_layers - 1, 1)
        if elsewhere < least or (n_gpu_layers == 0 and elsewhere):
            raise HQError(
                f"n_gpu_layers = {n_gpu_layers} was asked for, and llama.cpp computes "
                f"{elsewhere} of the {layers} FFNs of {self.file.path.name} on a GPU: check its "
                "build and the GPU's free memory, or set n_gpu_layers to 0."
            )

    def _require_unchanged(self, factors: Factors) -> None:
        """Raises HQError if other scales are in force: the prefix was computed under the first."""
        if self.scales.factors != factors:
            raise scales_changed()

    def _context_for(
        self, layout: Plan, exchanges: Sequence[PromptResponse]
    ) -> tuple[Context, GraphObserver]:
        """A context in which the prefix and any batch have room."""
        start = len(layout.prefix)
        tails = [sum(len(exchanges[row]) - start for row in rows) for rows in layout.batches]
        rows = max(len(rows) for rows in layout.batches)
        batch = max(start, min(max(tails), self.token_budget))
        return self.context(start + max(tails), rows + 1, batch)


def compute_of(kind: GGMLType, place: str) -> str:
    """What a product with weights of this type runs in.

    On the CPU, activations are rounded to the type that its kernels multiply by. A GPU's kernels
    depend on its generation and on the number of tokens: only the device's name is certain.
    """
    return kind.activations if place == CPU else place


def _parts(
    context: Context, tails: PackedBatch, wanted: Bool[np.ndarray, " token"]
) -> Iterator[BatchPart]:
    """The logits of the wanted tokens, a decode at a time."""
    begin = 0
    for piece in tails.pieces(context.batch):
        logits = tails.decode(context, piece, wanted[piece])
        yield begin, logits
        begin += len(logits)
