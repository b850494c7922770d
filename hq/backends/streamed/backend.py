"""The streamed backend: traces a checkpoint of any size with the memory of one layer."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, overload

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from hq.backends.base import (
    Predictions,
    TraceBatch,
    join_predictions,
    require_fitting,
)
from hq.backends.batching import plan
from hq.backends.streamed.layer_files import LayerFiles
from hq.backends.streamed.passes import (
    HEAD_IDS,
    Passes,
    PrecisionRun,
    Task,
    read_batches,
    read_norms,
)
from hq.backends.streamed.skeleton import Skeleton, projects
from hq.backends.transformers.activations import layer_norms
from hq.backends.transformers.backend import TOKEN_BUDGET, VALUE_BUDGET, usable_device
from hq.errors import HQError
from hq.models.audit import AuditRow
from hq.models.auto import context_length
from hq.models.checkpoint import (
    architecture_at,
    checkpoint_identity,
    quantization_config,
    quantization_of,
    whole_config,
)
from hq.models.ffn_weights import FFNs, of_modules
from hq.models.head import Head, ReferenceLogits
from hq.models.logits import distributions
from hq.neurons.cett import Measure, Span
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse
from hq.precisions import PRECISIONS
from hq.precisions.base import MadeByLayer, StoredWeight, require_precision


class StreamedBackend:
    """One checkpoint at one precision, of which one layer at a time is in memory.

    It traces, predicts and reads weights; everything else raises HQError, as it needs the whole
    model.
    Values are those of TorchBackend.

    Args:
        path: Folder of a dense checkpoint.
        precision: Name of a precision that is made from one layer alone.
        device: cpu or cuda; None is CUDA if torch has it.
        token_budget: Tokens per batch.
        model_identity: Identity of the checkpoint, if it is known.
        passes: Shared by the backends of a checkpoint, so that one reading of its files serves
            several precisions and a killed trace continues; default: a temporary folder.

    Raises HQError for a model or precision that `require_streamable` rejects.
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
        passes: Passes | None = None,
    ) -> None:
        self.path = Path(path)
        self.precision = precision
        require_streamable(self.path, precision)
        require_precision(self.path, precision)
        self._precision = PRECISIONS[precision]
        self._family = architecture_at(self.path)
        self._config = whole_config(self.path)
        self.identity = model_identity or checkpoint_identity(self.path)
        self.device = usable_device(device)
        self.token_budget = token_budget
        self._passes = passes
        self._skeleton = self._bare(precision)
        self._files = LayerFiles(self.path, self._family, self._skeleton.decoder)
        self._kinds: dict[tuple[type, tuple[int, ...]], tuple[str, StoredWeight]] = {}

    def __enter__(self) -> "StreamedBackend":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is held."""

    def _bare(self, precision: str) -> Skeleton:
        return Skeleton(self._config, self._family, PRECISIONS[precision], self.device)

    @property
    def compute(self) -> str:
        """The type of the arithmetic."""
        return str(self._skeleton.compute).removeprefix("torch.")

    @cached_property
    def norms(self) -> Float[np.ndarray, " p"]:
        """‖W_down[:, i]‖₂ of this variant's own dequantized weights, float32."""
        name = self._family.down
        parts = []
        for layer in range(self.identity.n_layers):
            made = self._part(layer, (name,))
            norms = layer_norms(made.get_submodule(name), self._skeleton.dense)
            parts.append(norms.cpu().numpy())
        return np.concatenate(parts)

    def _part(self, layer: int, names: Sequence[str]) -> nn.Module:
        """A copy of a layer in which only these modules have weights."""
        stored = self._files.layers[layer]
        wanted = [n for n in stored if any(n.startswith(f"{name}.") for name in names)]
        return self._skeleton.filled(layer, self._files.read(layer, wanted))

    def _projections(self) -> dict[str, Any]:
        """The projections inside of the layers, without weights."""
        return {n: m for n, m in self._skeleton.layers.named_modules() if projects(m)}

    def audit(self) -> list[AuditRow]:
        """The projections inside the layers, counted by how their weights are stored.

        One of each shape is made; all are checked in the pass, as soon as they are made. Raises
        HQError if one is at another precision.
        """
        rows: Counter[tuple[str, str, float, int]] = Counter()
        for name, module in self._projections().items():
            kind, stored = self._kind(name, module)
            bits = round(8 * stored.nbytes / stored.weights, 3)
            rows[kind, stored.storage, bits, stored.weights] += 1
        return [
            AuditRow(kind, count, storage, bits, self.compute, count * size)
            for (kind, storage, bits, size), count in sorted(rows.items())
        ]

    def _kind(self, name: str, module: Any) -> tuple[str, StoredWeight]:
        """Class of a projection, and how its weight is stored, from the first of its shape."""
        key = type(module), tuple(module.weight.shape)
        if key not in self._kinds:
            layer, _, inside = name.partition(".")
            made = self._part(int(layer), (inside,)).get_submodule(inside)
            self._kinds[key] = type(made).__name__, self._precision.stored(made)
        return self._kinds[key]

    def weight_bytes(self) -> int:
        """Bytes of the weights as they ship: packed ones with their scales, all others in FP16."""
        inside = self._projections()
        shipped: int = sum(self._kind(name, m)[1].shipped_nbytes for name, m in inside.items())
        of_projections = {id(m.weight) for m in inside.values()}
        model = self._skeleton.model
        held = [*model.named_parameters(), *model.named_buffers()]  # a tied weight comes once
        rest = (t for _, t in held if id(t) not in of_projections)
        sizes = (2 * t.numel() if t.is_floating_point() else int(t.nbytes) for t in rest)
        return shipped + sum(sizes)

    def ffns(self) -> FFNs:
        """The weights of each layer's FFN, dequantized; each access reads them again."""

        def bits(module: nn.Module) -> float:
            stored = self._precision.stored(module)
            return 8 * stored.shipped_nbytes / stored.weights

        def explained(module: nn.Module) -> float:
            return self._precision.stored(module).explained

        names = [*self._family.projections, *filter(None, [self._family.norm])]
        layers = _Layers(self, names)
        config = self._config.get_text_config()
        return of_modules(layers, self._family, config, self._skeleton.dense, bits, explained)

    def trace(
        self,
        exchanges: Sequence[PromptResponse],
        measures: tuple[Measure, ...] = ("sum",),
        spans: tuple[Span, ...] = ("answer",),
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[TraceBatch]:
        """The batches of `TorchBackend.trace`, after a pass over the checkpoint.

        Raises HQError for token ids outside of the vocabulary, texts that are too long, and
        activations that are not finite.
        """
        self._require_fitting(exchanges)
        layers = self.identity.n_layers
        width = len(measures) * len(spans) * self.identity.n_neurons
        layout = plan(exchanges, self.token_budget, max_rows=VALUE_BUDGET // width)
        if skip >= set(range(len(layout.batches))):
            return
        task = Task(exchanges, layout, measures, spans)
        with self._pass(task) as folder:
            self.norms = read_norms(folder, layers)
            for number, rows, values in read_batches(folder, task, layers, skip):
                yield TraceBatch(
                    number, rows, values, measures, spans, self.identity, self.precision
                )

    def _require_fitting(self, exchanges: Sequence[PromptResponse]) -> None:
        """Raises HQError for token ids outside of the vocabulary and texts that are too long."""
        vocabulary = int(self._skeleton.model.get_input_embeddings().num_embeddings)
        require_fitting(exchanges, vocabulary, context_length(self._config), self.identity.name)

    @contextmanager
    def _pass(self, task: Task) -> Iterator[Path]:
        """The folder of a finished pass, which is removed if all of it was read."""
        with ExitStack() as stack:
            passes = self._passes
            if passes is None:
                temporary = tempfile.TemporaryDirectory(prefix="hq-streamed-")
                passes = Passes(Path(stack.enter_context(temporary)), (self.precision,))
            folder = passes.finished(self.precision, task, self._files, self._bare, self.device)
            yield folder
            passes.release(folder)

    def predictions(
        self,
        exchanges: Sequence[PromptResponse],
        reference: ReferenceLogits | None = None,
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[Predictions]:
        """The batches of `TorchBackend.predictions`, after a pass over the checkpoint.

        Raises HQError as `trace` does, and for a head that hq cannot compute.
        """
        self._require_fitting(exchanges)
        task = Task(exchanges, plan(exchanges, self.token_budget))
        if skip >= set(range(len(task.layout.batches))):
            return
        with self._pass(task) as folder:
            run = PrecisionRun(folder, self._bare(self.precision), self._files, task)
            for number, rows in enumerate(task.layout.batches):
                if number in skip:
                    continue
                batch = [exchanges[row] for row in rows]
                chosen = torch.tensor([token for e in batch for token in e.response])
                hidden = run.last_hidden(number)
                with torch.inference_mode():
                    blocks = None if reference is None else reference.blocks(rows, self.device)
                    part = distributions(self.head.blocks(hidden), chosen, blocks)
                yield join_predictions(number, rows, batch, [part], hidden, self.precision)
            del run

    @cached_property
    def head(self) -> Head:
        """The map from last hidden states to logits, which is read as a whole."""
        skeleton = self._bare(self.precision)
        skeleton.fill_outside(self._files, torch.tensor(list(HEAD_IDS)))
        return skeleton.head(self._files)

    def __getattr__(self, name: str) -> Any:
        """Raises HQError for everything that needs the whole model."""
        if name in _RESIDENT:
            raise HQError(
                f"{self.identity.name} at {self.precision} is read layer by layer, which gives "
                f"traces but no {_RESIDENT[name]}: run this step on a machine where the model fits "
                "into memory, with stream = 'never'."
            )
        raise AttributeError(name)


_RESIDENT = {
    "decoding": "responses",
    "hidden_states": "hidden states",
    "logits": "logits",
    "read_tokens": "CETT of single tokens",
    "scale": "steering",
}


class _Layers(Sequence[nn.Module]):
    """The layers of a streamed model, of which each access reads the named modules."""

    def __init__(self, backend: StreamedBackend, names: Sequence[str]) -> None:
        self._backend, self._names = backend, names

    def __len__(self) -> int:
        return self._backend.identity.n_layers

    @overload
    def __getitem__(self, layer: int) -> nn.Module: ...
    @overload
    def __getitem__(self, layer: slice) -> NoReturn: ...
    def __getitem__(self, layer: int | slice) -> nn.Module:
        assert isinstance(layer, int)
        return self._backend._part(layer, self._names)


def streamable(precision: str) -> bool:
    """Whether a precision is made from one layer alone."""
    return precision in PRECISIONS and isinstance(PRECISIONS[precision], MadeByLayer)


def require_streamable(path: Path, precision: str) -> None:
    """Raises HQError, in one sentence, if a checkpoint at a precision cannot be streamed."""
    reason = unstreamable(path, precision)
    if reason:
        raise HQError(f"{path.name} at {precision} cannot be traced layer by layer: {reason}.")


def unstreamable(path: Path, precision: str) -> str:
    """Why a checkpoint at a precision cannot be streamed; empty if it can."""
    if not streamable(precision):
        known = ", ".join(name for name in PRECISIONS if streamable(name))
        return f"the precision is not made from one layer alone; those that are: {known}"
    if quantization_config(path) is not None:
        return f"the checkpoint is quantized already ({quantization_of(path)}); name its source"
    config, family = whole_config(path), architecture_at(path)
    text = config.get_text_config()
    if family.experts is not None:
        return "its layers are mixtures of experts, which are packed while a whole model loads"
    if family.detected:
        return f"hq has no record of the model type {text.model_type!r}"
    if getattr(text, "num_kv_shared_layers", 0):
        return "its layers share the keys and values of earlier layers"
    return ""
