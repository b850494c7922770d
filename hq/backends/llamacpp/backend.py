"""The llama.cpp backend: a GGUF file whose activations are read and scaled in llama.cpp's graph."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from hq.backends.base import (
    SITES,
    HiddenStates,
    Predictions,
    Site,
    TokenReadings,
    TraceBatch,
    join_predictions,
    join_readings,
    require_finite,
    require_known,
    require_sites,
    scales_changed,
)
from hq.backends.batching import Plan, plan, span_weights
from hq.backends.llamacpp.decoding import LlamaDecoding
from hq.backends.llamacpp.packed_batch import MAX_ROWS, PackedBatch, decode_prefix, read_prefix
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.types import GGMLType
from hq.llamacpp.attention import EXACT
from hq.llamacpp.context import Context
from hq.llamacpp.graph import CPU, ExpertSizes
from hq.llamacpp.hidden import HiddenReader
from hq.llamacpp.library import load_library
from hq.llamacpp.model import LlamaModel
from hq.llamacpp.observer import ActivationScales, ActiveFactors, GraphObserver
from hq.models.audit import AuditRow
from hq.models.ffn_weights import FFNs
from hq.models.head import Head, ReferenceLogits
from hq.models.logits import blocks_of, distributions
from hq.neurons.cett import Measure, Span
from hq.neurons.factors import Factors
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse
from hq.precisions.gguf import (
    attention_of,
    file_precision,
    require_head_widths,
    require_kind,
)

_TOKEN_BUDGET = 512  # tokens per decode: a token attends to all cells of its batch, so more is slow
_VALUE_BUDGET = 1 << 25  # float32 values of a batch of traces: 128 MiB
_LOGIT_BUDGET = 1 << 25  # logits of a decode, which llama.cpp holds at once: 128 MiB

LogitChunk = tuple[int, Float[np.ndarray, "token vocab"]]
"""The index of a batch's response token, and the logits that predict it and those after it."""


class LlamaBackend:
    """One GGUF file. A context manager; `close` frees the weights.

    Args:
        path: The file, or the first part of a split one.
        precision: The precision that the file must have, with the suffix that says how it is run;
            `gguf-source` accepts any file.
        token_budget: Number of tokens per decode.
        model_identity: The identity of the source model, if the file's own is not to be used.
        threads: Number of CPU threads.
        n_gpu_layers: Number of layers on the GPU, as llama.cpp counts them: 0 for the CPU only,
            -1 for the GPU only.

    Raises HQError if the file is damaged or has another quantization than the precision, if the
    activations of its architecture cannot be observed, if attention is not computed as the suffix
    says, or if GPU layers do not run on a GPU.
    """

    missing: frozenset[int] = frozenset()
    unmatched: frozenset[int] = frozenset()

    def __init__(
        self,
        path: Path,
        precision: str = "gguf-source",
        token_budget: int = _TOKEN_BUDGET,
        model_identity: ModelIdentity | None = None,
        threads: int = 1,
        n_gpu_layers: int = 0,
    ) -> None:
        self.precision = precision
        self.file = GGUFFile(path)
        require_kind(self.file, file_precision(precision))
        require_head_widths(precision, self.file.head_widths, path)
        self.attention = attention_of(precision)
        self.identity = model_identity or self.file.identity
        self.token_budget = token_budget
        self.threads = threads
        self.model = LlamaModel(*self.file.paths, n_gpu_layers=n_gpu_layers)
        try:
            self._nodes = self.model.graph_nodes(
                self.file.n_layers, self.file.d_ff, self.attention, _expert_sizes(self.file)
            )
            self._require_devices(n_gpu_layers)
        except BaseException:
            self.close()
            raise
        self.scales = ActivationScales(self.file.space)

    def __enter__(self) -> "LlamaBackend":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free every context and then the weights."""
        self.model.close()

    @property
    def compute(self) -> str:
        """What the FFNs are computed in, as `compute_of` names it; `mixed: …` for several.

        If the precision has a suffix, it is followed by how attention is computed.
        """
        computes = sorted({r.compute for r in self.audit() if r.module.startswith("ffn")})
        ffns = computes[0] if len(computes) == 1 else f"mixed: {', '.join(computes)}"
        return ffns if self.attention == EXACT else f"{ffns}, {self._nodes.attention}"

    @property
    def device(self) -> str:
        """Where the FFN activations are computed: CPU, CUDA0, or several."""
        return ", ".join(sorted(set(self._nodes.devices)))

    @property
    def norms(self) -> Float[np.ndarray, " p"]:
        """‖W_down[:, i]‖₂ of the file's own dequantized blocks, float32."""
        return self.file.norms.ravel()

    def audit(self) -> list[AuditRow]:
        """The projections of the layers, counted by the type that each is stored in."""
        devices = self._nodes.devices
        return self.file.audit(lambda layer, kind: compute_of(kind, devices[layer]))

    def weight_bytes(self) -> int:
        """Bytes of all tensors in the file."""
        return self.file.weight_bytes()

    def context(
        self, tokens: int, sequences: int, batch: int, unified: bool = True
    ) -> tuple[Context, GraphObserver]:
        """Create a context of this size, and the observer that reads and scales in it."""
        observer = GraphObserver(
            self._nodes, self.file.norms, batch, self.scales, self.model.on_host
        )
        context = self.model.context(
            observer,
            tokens=tokens,
            sequences=sequences,
            batch=batch,
            threads=self.threads,
            attention=self.attention,
            unified=unified,
        )
        return context, observer

    def ffns(self) -> FFNs:
        """The weights of each block's FFN, dequantized."""
        return self.file.ffns()

    def in_layers(self, neurons: Int[np.ndarray, " k"]) -> list[tuple[int, int]]:
        """The layer of each flat index, and the index in it over all experts."""
        self.identity.space.block_of(neurons)  # raises HQError for neurons of another model
        layers, indices = np.divmod(neurons, self.file.width)
        return list(zip(layers.tolist(), indices.tolist(), strict=True))

    def trace(
        self,
        exchanges: Sequence[PromptResponse],
        measures: tuple[Measure, ...] = ("sum",),
        spans: tuple[Span, ...] = ("answer",),
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[TraceBatch]:
        """Means of each measure over each span, for every neuron, summed inside llama.cpp.

        A prefix that all prompts share is computed once; its tokens count in `other`.
        Raises HQError if a token id is unknown, if activations are not finite, or if the scales
        change before the last batch.
        """
        require_known(exchanges, self.model.vocabulary, self.identity.name)
        width = len(measures) * len(spans) * self.identity.n_neurons
        if not exchanges:
            return
        self.require_length(max(map(len, exchanges)))
        layout = plan(exchanges, self.token_budget, min(MAX_ROWS, _VALUE_BUDGET // width))
        context, observer = self._context_for(layout, exchanges)
        factors = self.scales.factors
        with closing(context):
            shape = (len(measures), len(spans), *self.file.norms.shape)
            prefix = np.zeros((1, len(measures), 1, *shape[2:]), dtype=np.float32)
            ones = np.full((len(layout.prefix), 1), "other" in spans, dtype=np.float32)
            # The last layer computes tokens with logits only, so as many as fit the budget.
            step = self._outputs_per_decode if "other" in spans else context.batch
            for begin in range(0, len(ones), step):
                part = slice(begin, min(begin + step, len(ones)))
                first = np.zeros(part.stop - begin, dtype=np.int64)
                with observer.traced(first, ones[part], prefix, measures):
                    decode_prefix(context, layout.prefix, part, "other" in spans)
            for number, rows in enumerate(layout.batches):
                if number not in skip:
                    self._require_same_scales(factors)
                    batch = [exchanges[row] for row in rows]
                    values = np.zeros((len(rows), *shape), dtype=np.float32)
                    start = len(layout.prefix)
                    self._trace_batch(context, observer, batch, start, values, measures, spans)
                    if "other" in spans:
                        counts = np.array([len(e.prompt) for e in batch], dtype=np.float32)
                        share = prefix[:, :, 0] / counts.reshape(-1, 1, 1, 1)
                        values[:, :, spans.index("other")] += share
                    require_finite(values, self.precision)
                    flat = values.reshape(*values.shape[:3], -1)
                    yield TraceBatch(
                        number, rows, flat, measures, spans, self.identity, self.precision
                    )

    def _trace_batch(
        self,
        context: Context,
        observer: GraphObserver,
        batch: Sequence[PromptResponse],
        start: int,
        values: Float[np.ndarray, "batch measure span layer width"],
        measures: tuple[Measure, ...],
        spans: tuple[Span, ...],
    ) -> None:
        packed = PackedBatch(batch, start)
        padded = span_weights(batch, start, max(packed.lengths), spans)
        weights = padded.transpose(0, 2, 1)[packed.rows, packed.positions]  # [token, span]
        with packed.sequences(context):
            for chunk in packed.chunks(min(context.batch, self._outputs_per_decode)):
                chunk_weights = np.ascontiguousarray(weights[chunk])
                rows = packed.rows[chunk].copy()
                with observer.traced(rows, chunk_weights, values, measures):
                    packed.decode(context, chunk, chunk_weights.any(axis=1))

    def read_tokens(
        self,
        exchanges: Sequence[PromptResponse],
        neurons: Int[np.ndarray, " k"],
        measure: Literal["sum", "output"],
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[TokenReadings]:
        """CETT of these neurons (flat indices, ascending) at each response token.

        A prefix that all prompts share is computed once. Raises HQError as `trace` does.
        """
        require_known(exchanges, self.model.vocabulary, self.identity.name)
        if not exchanges:
            return
        self.require_length(max(map(len, exchanges)))
        layout = plan(exchanges, self.token_budget, MAX_ROWS)
        context, observer = self._context_for(layout, exchanges)
        positions = self.in_layers(neurons)
        start, factors = len(layout.prefix), self.scales.factors
        with closing(context):
            read_prefix(context, layout.prefix)
            for number, rows in enumerate(layout.batches):
                if number in skip:
                    continue
                self._require_same_scales(factors)
                batch = [exchanges[row] for row in rows]
                packed, parts = PackedBatch(batch, start), []
                prompts = np.array([len(e.prompt) - start for e in batch])
                of_responses = packed.positions >= prompts[packed.rows]
                with packed.sequences(context), observer.watched(positions, measure) as readings:
                    for chunk in packed.chunks(min(context.batch, self._outputs_per_decode)):
                        # The last layer computes tokens with logits only.
                        packed.decode(context, chunk, of_responses[chunk])
                        parts.append(readings.cett(chunk.stop - chunk.start))
                cett = np.concatenate(parts)[of_responses]
                ends = np.cumsum([len(e.response) for e in batch])
                yield join_readings(number, rows, np.split(cett, ends[:-1]), self.precision)

    def logits(
        self, exchanges: Sequence[PromptResponse]
    ) -> Iterator[tuple[int, Float[np.ndarray, "token vocab"]]]:
        """Yield (row, logits that predict each token of its response), in batches by length.

        Raises HQError if a token id is unknown, or if the scales change before the last batch.
        """
        for _, rows, batch, chunks in self._logits(exchanges, frozenset()):
            flat = np.concatenate([logits.copy() for _, logits in chunks])
            ends = np.cumsum([len(exchange.response) for exchange in batch])
            yield from zip(map(int, rows), np.split(flat, ends[:-1]), strict=True)

    def predictions(
        self,
        exchanges: Sequence[PromptResponse],
        reference: ReferenceLogits | None = None,
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[Predictions]:
        """How each response token is predicted, computed from llama.cpp's buffer of logits.

        Raises HQError if a token id is unknown, or if logits are not finite.
        """
        for number, rows, batch, chunks in self._logits(exchanges, skip):
            tokens = torch.tensor([token for e in batch for token in e.response])
            parts = []
            for begin, logits in chunks:
                chunk = slice(begin, begin + len(logits))
                blocks = None if reference is None else reference.blocks(rows, tokens=chunk)
                parts.append(distributions(blocks_of(logits), tokens[chunk], blocks))
            yield join_predictions(number, rows, batch, parts, None, self.precision)

    def hidden_states(
        self,
        exchanges: Sequence[PromptResponse],
        sites: Sequence[Site] = SITES,
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[HiddenStates]:
        """Means over the response and states at its last token, copied from llama.cpp's graph.

        Raises HQError if a token id is unknown, if states are not finite or cannot be read, or if
        neurons are scaled.
        """
        require_sites(sites)
        require_known(exchanges, self.model.vocabulary, self.identity.name)
        if self.scales.factors:
            raise HQError(
                "Hidden states are read without scaled neurons in llama.cpp: leave `scale` first."
            )
        if not exchanges:
            return
        self.require_length(max(map(len, exchanges)))
        budget = min(self.token_budget, self._outputs_per_decode)
        layout = plan(exchanges, budget, MAX_ROWS)
        reader = HiddenReader(tuple(sites), self.file.n_layers, self.file.path.name)
        with closing(self._hidden_context(layout, exchanges, reader)) as context:
            reader.begin(len(layout.prefix), np.arange(len(layout.prefix)))
            read_prefix(context, layout.prefix)
            for number, rows in enumerate(layout.batches):
                if number not in skip:
                    batch = [exchanges[row] for row in rows]
                    states = self._hidden_batch(context, reader, batch, len(layout.prefix))
                    ends = np.cumsum([len(exchange.response) for exchange in batch])
                    mean: dict[Site, Float[np.ndarray, "batch layer width"]] = {}
                    last: dict[Site, Float[np.ndarray, "batch layer width"]] = {}
                    for site in sites:
                        require_finite(states[site], self.precision)
                        parts = np.split(states[site], ends[:-1])
                        mean[site] = np.stack([part.mean(axis=0) for part in parts])
                        last[site] = states[site][ends - 1]
                    yield HiddenStates(number, rows, mean, last)

    def _hidden_context(
        self, layout: Plan, exchanges: Sequence[PromptResponse], reader: HiddenReader
    ) -> Context:
        """Create a context like `_context_for`, with a reader of hidden states as its callback."""
        callback = load_library().llama.ggml_backend_sched_eval_callback(reader)
        tokens, sequences, batch = self._sizes(layout, exchanges)
        return self.model.context(
            None,
            tokens=tokens,
            sequences=sequences,
            batch=batch,
            threads=self.threads,
            attention=self.attention,
            callback=callback,
        )

    def _hidden_batch(
        self, context: Context, reader: HiddenReader, batch: Sequence[PromptResponse], start: int
    ) -> dict[str, Float[np.ndarray, "token layer width"]]:
        """Return the states of all response tokens of a batch, exchange after exchange."""
        packed = PackedBatch(batch, start)
        first = np.array([len(exchange.prompt) for exchange in batch]) - start
        wanted = packed.positions >= first[packed.rows]
        parts: list[dict[str, Float[np.ndarray, "token layer width"]]] = []
        with packed.sequences(context):
            for chunk in packed.chunks(context.batch):
                outputs = np.flatnonzero(wanted[chunk])
                reader.begin(chunk.stop - chunk.start, outputs)
                packed.decode(context, chunk, wanted[chunk])
                if len(outputs):
                    parts.append(reader.end())
        return {site: np.concatenate([part[site] for part in parts]) for site in parts[0]}

    @property
    def head(self) -> Head:
        """Raises HQError: llama.cpp returns logits only."""
        raise HQError("llama.cpp returns no last hidden states: use fp16 as the reference.")

    def _logits(
        self, exchanges: Sequence[PromptResponse], skip: frozenset[int]
    ) -> Iterator[
        tuple[int, Int[np.ndarray, " batch"], list[PromptResponse], Iterator[LogitChunk]]
    ]:
        """Yield (number, rows, prompt–response pairs, logits in chunks) of each batch.

        The next chunk overwrites the logits of the last.
        """
        require_known(exchanges, self.model.vocabulary, self.identity.name)
        if not exchanges:
            return
        self.require_length(max(map(len, exchanges)))
        budget = min(self.token_budget, self._outputs_per_decode)
        layout = plan(exchanges, budget, MAX_ROWS)
        context, _ = self._context_for(layout, exchanges)
        factors = self.scales.factors
        with closing(context):
            read_prefix(context, layout.prefix)
            for number, rows in enumerate(layout.batches):
                if number in skip:
                    continue
                self._require_same_scales(factors)
                batch = [exchanges[row] for row in rows]
                packed = PackedBatch(batch, len(layout.prefix))
                answers = np.array([len(exchange.response) for exchange in batch])
                ends = np.array(packed.lengths) - 1  # the last token predicts no response token
                first, end = (ends - answers)[packed.rows], ends[packed.rows]
                wanted = np.logical_and(packed.positions >= first, packed.positions < end)
                with packed.sequences(context):
                    yield number, rows, batch, _logit_chunks(context, packed, wanted)

    @property
    def _outputs_per_decode(self) -> int:
        """The most tokens of which one decode may compute logits."""
        return max(1, _LOGIT_BUDGET // self.model.vocabulary)

    def decoding(self) -> LlamaDecoding:
        """Create a set of continuations."""
        return LlamaDecoding(lambda *sizes: self.context(*sizes)[0], self.require_length)

    def require_length(self, tokens: int) -> None:
        """Raises HQError if a text is longer than the context length that the file declares.

        Beyond it llama.cpp may compute something else than the model: in a file written by hq, the
        context is no longer than a sliding window that llama.cpp does not apply.
        """
        limit = self.file.metadata.get(f"{self.file.architecture}.context_length")
        if isinstance(limit, int) and tokens > limit:
            raise HQError(
                f"A text of {tokens} tokens is longer than the context of {self.file.path.name}, "
                f"{limit} tokens: shorten it."
            )

    def scale(self, factors: Factors) -> AbstractContextManager[None]:
        """h_i ← α·h_i for each neuron and its α, while the context lasts."""
        return self.scales.scaled(factors)

    def _require_devices(self, n_gpu_layers: int) -> None:
        """Raises HQError if the FFNs do not run on the devices that `n_gpu_layers` implies.

        llama.cpp counts the output as a layer, so `n_gpu_layers` = 1 moves no FFN.
        """
        layers = self.file.n_layers
        on_gpu = sum(device != CPU for device in self._nodes.devices)
        expects_all = n_gpu_layers == -1 or n_gpu_layers > layers
        minimum = layers if expects_all else min(n_gpu_layers - 1, 1)
        if on_gpu < minimum or (n_gpu_layers == 0 and on_gpu):
            raise HQError(
                f"n_gpu_layers = {n_gpu_layers} was requested, but llama.cpp computes {on_gpu} of "
                f"the {layers} FFNs of {self.file.path.name} on a GPU: check its build and the "
                "GPU's free memory, or set n_gpu_layers to 0."
            )

    def _require_same_scales(self, factors: ActiveFactors) -> None:
        """Raises HQError if other scales are active than when the prefix was computed."""
        if self.scales.factors != factors:
            raise scales_changed()

    def _context_for(
        self, layout: Plan, exchanges: Sequence[PromptResponse]
    ) -> tuple[Context, GraphObserver]:
        """Create a context that has room for the prefix and any batch, with its observer."""
        return self.context(*self._sizes(layout, exchanges))

    def _sizes(self, layout: Plan, exchanges: Sequence[PromptResponse]) -> tuple[int, int, int]:
        """Return the numbers of tokens, sequences, and tokens per decode of a context."""
        start = len(layout.prefix)
        tokens = max(sum(len(exchanges[row]) - start for row in rows) for rows in layout.batches)
        rows = max(len(rows) for rows in layout.batches)
        batch = max(start, min(tokens, self.token_budget))
        return start + tokens, rows + 1, batch


def _expert_sizes(file: GGUFFile) -> ExpertSizes | None:
    """The experts of each layer, for the search in llama.cpp's graph."""
    experts = file.experts
    if experts is None:
        return None
    return ExpertSizes(experts.count, experts.used, experts.shared_width)


def compute_of(kind: GGMLType, device: str) -> str:
    """What a matrix product with weights of this type is computed in.

    On the CPU this is the type that the kernels round activations to. A GPU's kernels depend on
    its generation and on the number of tokens, so only the device is named.
    """
    return kind.activations if device == CPU else device


def _logit_chunks(
    context: Context, packed: PackedBatch, wanted: Bool[np.ndarray, " token"]
) -> Iterator[LogitChunk]:
    """The logits of the wanted tokens, one decode at a time."""
    begin = 0
    for chunk in packed.chunks(context.batch):
        logits = packed.decode(context, chunk, wanted[chunk])
        yield begin, logits
        begin += len(logits)
