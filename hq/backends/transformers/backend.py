"""The torch backend: any transformers checkpoint, at every precision that torch runs."""

import gc
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

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
    require_fitting,
    require_sites,
)
from hq.backends.batching import plan, span_weights
from hq.backends.transformers.activations import layer_norms
from hq.backends.transformers.decoding import TorchDecoding
from hq.backends.transformers.eager import eager
from hq.backends.transformers.experts import Mixture, verify_experts
from hq.backends.transformers.hidden import HiddenHooks
from hq.backends.transformers.hooks import DownHooks, ShareHooks, Watched, scaled
from hq.backends.transformers.prefix import PrefixCache
from hq.errors import HQError
from hq.models.architectures import down_projections
from hq.models.architectures.detection import verify_detection
from hq.models.audit import AuditRow
from hq.models.auto import context_length, is_wrapper
from hq.models.checkpoint import architecture_at, checkpoint_identity
from hq.models.expert_weights import is_routed
from hq.models.ffn_weights import FFNs, of_modules
from hq.models.head import Head, ReferenceLogits, body_of, head_of
from hq.models.logits import distributions
from hq.models.placement import (
    AUTO,
    device_of,
    in_memory,
    is_distributed,
    places,
    require_supported,
    summary,
)
from hq.neurons.cett import Measure, Span
from hq.neurons.factors import Factors
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse
from hq.precisions import PRECISIONS
from hq.precisions.base import StoredWeight, load_distributed
from hq.precisions.experts import experts_at, require_experts

TOKEN_BUDGET = 2048  # tokens per batch; larger batches are not faster on a CPU
VALUE_BUDGET = 1 << 25  # float32 values of a batch of traces: 128 MiB, two of which exist at once


class TorchBackend:
    """One checkpoint loaded at one precision. A context manager; `close` frees the weights.

    With the device `auto`, accelerate distributes the layers over all GPUs and, where these are
    full, leaves their weights in the memory of the CPU; `device` is then that of the embeddings.

    Raises HQError for an unknown family or precision, an incomplete checkpoint, a device that torch
    does not have, and if the loaded modules do not have the requested precision.
    """

    missing: frozenset[int] = frozenset()
    unmatched: frozenset[int] = frozenset()

    def __init__(
        self,
        path: str | Path,
        precision: str = "fp16",
        device: str | None = None,
        token_budget: int = TOKEN_BUDGET,
        model_identity: ModelIdentity | None = None,
    ) -> None:
        path = Path(path)
        self.precision = precision
        self._precision = PRECISIONS[precision]
        self._family = architecture_at(path)
        self.identity = model_identity or checkpoint_identity(path)
        if self.identity.space.has_experts:
            require_experts(path, self._precision)
        self.device = usable_device(device)
        self.token_budget = token_budget
        self.model: Any
        if device == AUTO:
            self.model = load_distributed(self._precision, path)
            self.device = device_of(self.model.get_input_embeddings())
        else:
            self.model = self._precision.load(path, self.device)
        self.decoder: nn.Module = self.model.get_decoder()
        self.downs = down_projections(self.decoder, self._family)
        self.audit()
        verify_experts(self.downs)
        if self._family.detected or is_wrapper(self.model):
            verify_detection(self.model, self.downs, self._dense, self.device)

    def __enter__(self) -> "TorchBackend":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights."""
        self.model = self.decoder = self.downs = None  # type: ignore[assignment]
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def compute(self) -> str:
        """The type of the arithmetic; of a distributed model, also where its layers are."""
        dtype = str(self.model.get_input_embeddings().weight.dtype).removeprefix("torch.")
        return ", ".join(filter(None, (dtype, summary(self._places()))))

    def _places(self) -> list[str]:
        """Where the down projection, or the experts, of each layer are; empty on one device."""
        if not is_distributed(self.model):
            return []
        wanted = {id(m) for m in self.downs}
        named = {name: m for name, m in self.model.named_modules() if id(m) in wanted}
        return list(places(self.model, named).values())

    @cached_property
    def norms(self) -> Float[np.ndarray, " p"]:
        """‖W_down[:, i]‖₂ of this variant's own dequantized weights, float32."""
        return torch.cat(self._norms).cpu().numpy()

    @cached_property
    def _norms(self) -> list[Float[Tensor, " d_ff"]]:
        return [layer_norms(down, self._dense) for down in self.downs]

    def norms_of(self, layer: int) -> Float[Tensor, " d_ff"]:
        """‖W_down[:, i]‖₂ of one layer, on the device that computes."""
        return self._norms[layer]

    def _dense(self, projection: nn.Module) -> Float[Tensor, "d_out d_in"]:
        with in_memory(projection):
            dense = self._precision.dense(projection)
        return dense.T if isinstance(projection, Conv1D) else dense

    @property
    def _vocabulary(self) -> int:
        return int(self.model.get_input_embeddings().num_embeddings)

    def audit(self) -> list[AuditRow]:
        """The projections inside the layers, counted by how their weights are stored.

        The routed experts of a layer count as one.
        """
        layers = self.decoder.get_submodule(self._family.layers)
        downs = {down for down in self.downs if Mixture.of(down) is None}
        projections = {
            n: m for n, m in layers.named_modules() if _projects(m) or m in downs or is_routed(m)
        }
        wrong = [name for name, m in projections.items() if not self._is_stored(m)]
        if wrong:
            raise HQError(
                f"{len(wrong)} of {len(projections)} projections are not {self.precision}, "
                f"{wrong[0]} first: results would be those of another precision."
            )
        dtype = self.compute.partition(",")[0]
        names = {id(m): name for name, m in self.model.named_modules()}
        where = places(self.model, {names[id(m)]: m for m in projections.values()})
        kinds = Counter(
            (*self._kind(m), f"{dtype} {where[names[id(m)]]}".strip()) for m in projections.values()
        )
        return [
            AuditRow(module, count, storage, bits, compute, count * size)
            for (module, storage, bits, size, compute), count in sorted(kinds.items())
        ]

    def _is_stored(self, module: nn.Module) -> bool:
        """Whether a projection, or the routed experts of a layer, are at this precision."""
        if is_routed(module):
            return experts_at(self._precision, module) is not None
        return self._precision.is_precision_of(module)

    def _stored(self, module: nn.Module) -> StoredWeight:
        experts = experts_at(self._precision, module) if is_routed(module) else None
        return experts or self._precision.stored(module)

    def _kind(self, module: nn.Module) -> tuple[str, str, float, int]:
        """Class, storage type, bits per weight, number of weights."""
        stored = self._stored(module)
        bits = round(8 * stored.nbytes / stored.weights, 3)
        return type(module).__name__, stored.storage, bits, stored.weights

    def weight_bytes(self) -> int:
        """Bytes of the weights as they ship: packed ones with their scales, all others in FP16.

        A CPU holds the latter in FP32 for its arithmetic; tied weights count once.
        """
        projections = [m for m in self.decoder.modules() if _projects(m) or is_routed(m)]
        held = [*self.model.named_parameters(), *self.model.named_buffers()]
        packed = {
            _key(tensor)
            for module in projections
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]
            if not name.endswith("bias")
        }
        if getattr(
            self.model.config.get_text_config(), "tie_word_embeddings", False
        ):  # offloaded, they are two
            packed |= {_key(tensor) for tensor in self.model.get_output_embeddings().parameters()}
            packed -= {_key(tensor) for tensor in self.model.get_input_embeddings().parameters()}
        rest = {_key(t): t for _, t in held if _key(t) not in packed}
        of_rest: Iterator[int] = (
            2 * t.numel() if t.is_floating_point() else t.nbytes for t in rest.values()
        )
        return sum(of_rest) + sum(self._stored(m).shipped_nbytes for m in projections)

    def ffns(self) -> FFNs:
        """The weights of each layer's FFN, dequantized."""

        def bits(module: nn.Module) -> float:
            stored = self._stored(module)
            return 8 * stored.shipped_nbytes / stored.weights

        def explained(module: nn.Module) -> float:
            return self._precision.stored(module).explained

        layers = self.decoder.get_submodule(self._family.layers)
        assert isinstance(layers, nn.ModuleList)
        config = self.model.config.get_text_config()
        return of_modules(list(layers), self._family, config, self._dense, bits, explained)

    def trace(
        self,
        exchanges: Sequence[PromptResponse],
        measures: tuple[Measure, ...] = ("sum",),
        spans: tuple[Span, ...] = ("answer",),
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[TraceBatch]:
        """Means of each measure over each span, for every neuron, in one pass over the body.

        A prefix that all prompts share is computed once; its tokens still count in `other`.
        Raises HQError for token ids outside of the vocabulary, texts that are too long, activations
        that are not finite, and a compiled model, which does not call hooks.
        """
        self._require_fitting(exchanges)
        width = len(measures) * len(spans) * self.identity.n_neurons
        layout = plan(exchanges, self.token_budget, max_rows=VALUE_BUDGET // width)
        hooks = DownHooks(self.downs, self._norms, measures)
        # No hook stays on the model at a yield, as the caller may use it between batches.
        with torch.inference_mode(), eager(self.model, self.downs), hooks:
            prefix = PrefixCache(self.decoder, layout.prefix, self.device, hooks)
        for number, rows in enumerate(layout.batches):
            if number not in skip:
                batch = [exchanges[row] for row in rows]
                with torch.inference_mode(), eager(self.model, self.downs), hooks:
                    values = self._trace_batch(batch, prefix, hooks, spans)
                yield TraceBatch(
                    number, rows, values, measures, spans, self.identity, self.precision
                )

    def _trace_batch(
        self,
        batch: list[PromptResponse],
        prefix: PrefixCache,
        hooks: DownHooks,
        spans: tuple[Span, ...],
    ) -> Float[np.ndarray, "batch measure span p"]:
        start = len(prefix)
        ids = self.padded(batch, start)
        weights = span_weights(batch, start, ids.shape[1], spans)
        hooks.expect(torch.from_numpy(weights).to(self.device))
        self.decoder(ids, **prefix.inputs(len(batch)))
        values = hooks.collect()
        if "other" in spans and start:
            counts = torch.tensor([len(e.prompt) for e in batch], device=self.device)
            share = prefix.sums / counts.view(-1, 1, 1)
            values[:, :, spans.index("other")] += share
        array = values.cpu().numpy()
        require_finite(array, self.precision)
        return array

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
        self._require_fitting(exchanges)
        layout = plan(exchanges, self.token_budget)
        watched = Watched.of(neurons, self.identity.space, self.downs, self.norms_of)
        start = len(layout.prefix)
        downs, hooks = [layer.down for layer in watched], ShareHooks(watched, measure)
        with torch.inference_mode():
            prefix = PrefixCache(self.decoder, layout.prefix, self.device)
        for number, rows in enumerate(layout.batches):
            if number not in skip:
                batch = [exchanges[row] for row in rows]
                with torch.inference_mode(), eager(self.model, downs), hooks:
                    self.decoder(self.padded(batch, start), **prefix.inputs(len(batch)))
                    cett = hooks.collect(len(batch))
                parts = [
                    of_row[len(e.prompt) - start : len(e) - start]
                    for of_row, e in zip(cett, batch, strict=True)
                ]
                yield join_readings(number, rows, parts, self.precision)

    def logits(
        self, exchanges: Sequence[PromptResponse]
    ) -> Iterator[tuple[int, Float[np.ndarray, "token vocab"]]]:
        """(row, logits that predict its response tokens), in batches by length.

        Raises HQError for token ids outside of the vocabulary, and for texts that are too long.
        """
        for _, rows, batch, hidden in self._last_hidden(exchanges, frozenset()):
            parts = torch.split_with_sizes(hidden, [len(exchange.response) for exchange in batch])
            for row, states in zip(rows, parts, strict=True):
                with torch.inference_mode():
                    logits = self.head.logits(states)
                yield int(row), logits.cpu().numpy()

    def predictions(
        self,
        exchanges: Sequence[PromptResponse],
        reference: ReferenceLogits | None = None,
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[Predictions]:
        """Entropy, log-probability and KL of each response token, by blocks of the vocabulary.

        Raises HQError for token ids outside of the vocabulary, and for logits that are not finite.
        """
        for number, rows, batch, hidden in self._last_hidden(exchanges, skip):
            chosen = torch.tensor([token for e in batch for token in e.response])
            with torch.inference_mode():
                blocks = None if reference is None else reference.blocks(rows, hidden.device)
                part = distributions(self.head.blocks(hidden), chosen, blocks)
            yield join_predictions(number, rows, batch, [part], hidden, self.precision)

    def hidden_states(
        self,
        exchanges: Sequence[PromptResponse],
        sites: Sequence[Site] = SITES,
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[HiddenStates]:
        """Means over the response and states at its last token, at each site and layer.

        Raises HQError for token ids outside of the vocabulary, texts that are too long, states that
        are not finite, a compiled model, and a model in which a site cannot be found.
        """
        require_sites(sites)
        self._require_fitting(exchanges)
        layout, hooks = (
            plan(exchanges, self.token_budget),
            HiddenHooks(self.decoder, self._family, sites),
        )
        with torch.inference_mode():
            prefix = PrefixCache(self.decoder, layout.prefix, self.device)
        for number, rows in enumerate(layout.batches):
            if number not in skip:
                batch = [exchanges[row] for row in rows]
                with torch.inference_mode(), eager(self.model, hooks.modules), hooks:
                    sums = self._hidden_batch(batch, prefix, hooks)
                mean, last = ({site: values[k] for site, values in sums.items()} for k in (0, 1))
                yield HiddenStates(number, rows, mean, last)

    def _hidden_batch(
        self, batch: list[PromptResponse], prefix: PrefixCache, hooks: HiddenHooks
    ) -> dict[Site, Float[np.ndarray, "weighting batch layer width"]]:
        start = len(prefix)
        ids = self.padded(batch, start)
        weights = np.repeat(span_weights(batch, start, ids.shape[1], ("answer",)), 2, axis=1)
        weights[:, 1] = 0
        for row, exchange in enumerate(batch):
            weights[row, 1, len(exchange) - start - 1] = 1
        hooks.expect(torch.from_numpy(weights).to(self.device))
        self.decoder(ids, **prefix.inputs(len(batch)))
        arrays = {site: values.cpu().numpy() for site, values in hooks.collect().items()}
        for values in arrays.values():
            require_finite(values, self.precision)
        return arrays

    @cached_property
    def head(self) -> Head:
        """The map from last hidden states to logits."""
        return head_of(self.model, self.decoder)

    def _last_hidden(
        self, exchanges: Sequence[PromptResponse], skip: frozenset[int]
    ) -> Iterator[
        tuple[int, Int[np.ndarray, " batch"], list[PromptResponse], Float[Tensor, "token hidden"]]
    ]:
        """(number, rows, exchanges, states that predict the response tokens) of each batch."""
        self._require_fitting(exchanges)
        layout, body = plan(exchanges, self.token_budget), body_of(self.decoder)
        with torch.inference_mode():
            prefix = PrefixCache(self.decoder, layout.prefix, self.device)
        start = len(prefix)
        for number, rows in enumerate(layout.batches):
            if number not in skip:
                batch = [exchanges[row] for row in rows]
                # The token before each token of the response predicts it.
                spans = [(len(e.prompt) - start - 1, len(e) - start - 1) for e in batch]
                with torch.inference_mode():
                    inputs = prefix.inputs(len(batch))
                    states = body(self.padded(batch, start), **inputs).last_hidden_state
                    pairs = zip(states, spans, strict=True)
                    hidden = torch.cat([row[begin:end] for row, (begin, end) in pairs])
                    hidden = hidden.to(self.head.weight.device)
                yield number, rows, batch, hidden

    def decoding(self) -> TorchDecoding:
        """A new set of continuations."""
        return TorchDecoding(self.model, self.device, self.identity.name)

    def _require_fitting(self, exchanges: Sequence[PromptResponse]) -> None:
        """Raises HQError for token ids outside of the vocabulary and texts that are too long."""
        limit = context_length(self.model.config)
        require_fitting(exchanges, self._vocabulary, limit, self.identity.name)

    def scale(self, factors: Factors) -> AbstractContextManager[None]:
        """Multiply h_i by α for each neuron and its α, while the context lasts."""
        return scaled(self.model, self.downs, factors, self.identity.space)

    def padded(self, batch: list[PromptResponse], start: int) -> Int[Tensor, "batch seq"]:
        """Token ids after the prefix, padded on the right, where causality hides the padding."""
        suffixes = [torch.tensor(exchange.ids[start:]) for exchange in batch]
        return nn.utils.rnn.pad_sequence(suffixes, batch_first=True).to(self.device)


def usable_device(device: str | None) -> torch.device:
    """The device of that name, `cpu`, `cuda` or `cuda:N`; `None` selects CUDA if torch has it.

    `auto`, which distributes a model, needs CUDA: the device is the first GPU.

    Raises HQError for other names, and for a device that torch does not have here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        return torch.device("cuda" if count else "cpu")
    if device == AUTO:
        if not count:
            raise HQError(
                "The device 'auto' distributes layers over GPUs, and torch has no CUDA device "
                "here: use cpu, or omit `device`."
            )
        return torch.device("cuda", 0)
    if device == "mps":
        require_supported(torch.device("mps"))
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise HQError(
            "torch models run on cpu or cuda (cuda:1 is the second GPU, auto is all GPUs), not on "
            f"{device!r}: use one of these, or omit `device`."
        )
    requested = torch.device(device)
    if requested.type == "cuda" and (requested.index or 0) >= count:
        available = f"{count} CUDA devices" if count else "no CUDA device"
        raise HQError(
            f"torch has {available} here, not {device}: use another device, or omit `device`."
        )
    return requested


def _key(tensor: Tensor) -> int:
    """What identifies the memory of a tensor; offloaded ones have none."""
    return id(tensor) if tensor.is_meta else tensor.data_ptr()


def _projects(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix: Linear, GPT-2's Conv1D, packed kernels."""
    return isinstance(module, (nn.Linear, Conv1D)) or hasattr(module, "qweight")
