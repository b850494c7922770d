"""One reading of a checkpoint, in which all texts are traced at several precisions.

A folder per precision holds the values of the layers that are finished, and the hidden states after
the last of them, so a killed run continues with the next layer.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float, Int
from pydantic import BaseModel
from torch import Tensor, nn
from transformers import DynamicCache

from hq.backends.base import require_finite
from hq.backends.batching import Plan, span_weights
from hq.backends.streamed.layer_files import LayerFiles, Weights
from hq.backends.streamed.skeleton import LayerPrefix, Skeleton
from hq.backends.streamed.states import States
from hq.backends.transformers.activations import layer_norms
from hq.backends.transformers.hooks import DownHooks
from hq.models.checkpoint import file_digests
from hq.neurons.cett import Measure, Span
from hq.neurons.prompt_response import PromptResponse
from hq.storage.atomic import write_whole

_DONE = "layers.json"
HEAD_IDS = range(4)  # of the text on which `hq.models.head` measures an output head
_PREFIX = 0  # place of the prefix among the batches of states


@dataclass(frozen=True, slots=True)
class Task:
    """What is traced: the texts, in batches, and what is stored of each token."""

    exchanges: Sequence[PromptResponse]
    layout: Plan
    measures: tuple[Measure, ...] = ()  # none: only the last hidden states are needed
    spans: tuple[Span, ...] = ()

    @property
    def key(self) -> list[object]:
        """Everything that the values depend on, apart from the model."""
        texts = [[e.prompt, e.response] for e in self.exchanges]
        batches = [rows.tolist() for rows in self.layout.batches]
        return [texts, batches, self.measures, self.spans]

    @property
    def used(self) -> Int[Tensor, " k"]:
        """Ids of the tokens of all texts and of `HEAD_IDS`, ascending; 0 is the padding."""
        return torch.tensor(sorted(set(HEAD_IDS).union(*(e.ids for e in self.exchanges))))

    def ids(self, number: int) -> Int[Tensor, "batch seq"]:
        """Token ids of a batch after the prefix, padded on the right."""
        start = len(self.layout.prefix)
        rows = [torch.tensor(self.exchanges[r].ids[start:]) for r in self.layout.batches[number]]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)


class Passes:
    """Values of passes over checkpoints, which several backends of one checkpoint share.

    Args:
        root: Folder of the values, which are removed when a backend has read them.
        precisions: The precisions that one pass traces, if they are not finished.
        watch: Called after each layer with the number of finished layers, and of all layers.
    """

    def __init__(self, root: Path, precisions: Sequence[str]) -> None:
        self._root = root
        self.precisions = tuple(precisions)
        self.watch: Callable[[int, int], None] | None = None

    def finished(
        self,
        precision: str,
        task: Task,
        files: LayerFiles,
        skeleton: Callable[[str], Skeleton],
        device: torch.device,
    ) -> Path:
        """The folder of the values at a precision, after a pass if there are none."""
        folder = self._root / _digest([_files_key(files), task.key, str(device)])
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._root / f"{folder.name}.lock"):
            wanted = [precision]
            wanted += [p for p in self.precisions if p != precision and not _taken(folder, p)]
            if _record(folder / precision).layers < len(files.layers):
                _run(task, files, {p: (folder / p, skeleton(p)) for p in wanted}, self.watch)
        return folder / precision

    def release(self, folder: Path) -> None:
        """Remove the values of a precision; a later pass leaves it out."""
        folder.with_suffix(".taken").touch()
        shutil.rmtree(folder, ignore_errors=True)


def read_batches(
    folder: Path, task: Task, layers: int, skip: frozenset[int]
) -> Iterator[tuple[int, Int[np.ndarray, " batch"], Float[np.ndarray, "batch measure span p"]]]:
    """Yield (number, rows, values of all layers) of each batch of a finished pass."""
    for number, rows in enumerate(task.layout.batches):
        if number not in skip:
            # Opened for each batch, as Windows does not remove files that are mapped.
            parts = [np.load(_values(folder, n), mmap_mode="r")[rows] for n in range(layers)]
            yield number, rows, np.concatenate(parts, axis=-1)


def read_norms(folder: Path, layers: int) -> Float[np.ndarray, " p"]:
    """‖W_down[:, i]‖₂ of all neurons of a finished pass."""
    return np.concatenate([np.load(_norms(folder, number)) for number in range(layers)])


def _run(
    task: Task,
    files: LayerFiles,
    wanted: Mapping[str, tuple[Path, Skeleton]],
    watch: Callable[[int, int], None] | None,
) -> None:
    """Run the missing layers of each precision."""
    runs = [PrecisionRun(folder, skeleton, files, task) for folder, skeleton in wanted.values()]
    for layer, weights in files.in_order(min(run.done for run in runs), len(files.layers)):
        for run in runs:
            if run.done <= layer:
                run.advance(layer, weights)
        if watch is not None:
            watch(layer + 1, len(files.layers))


class PrecisionRun:
    """The pass at one precision, from its first missing layer on."""

    def __init__(self, folder: Path, skeleton: Skeleton, files: LayerFiles, task: Task) -> None:
        self._folder, self._skeleton, self._task = folder, skeleton, task
        folder.mkdir(exist_ok=True)
        record = _record(folder)
        self.done, skeleton.returns_tuple = record.layers, record.returns_tuple
        self._device = skeleton.device
        skeleton.fill_outside(files, task.used)
        self._prefix = torch.tensor([list(task.layout.prefix)], dtype=torch.long)
        ids = [self._prefix] if task.layout.prefix else [torch.zeros(1, 1, dtype=torch.long)]
        ids += [task.ids(number) for number in range(len(task.layout.batches))]
        with torch.inference_mode():
            first = skeleton.embed(ids[0].to(self._device), {"use_cache": False})
        shapes = [(*one.shape, *first.shape[2:]) for one in ids]
        self._states = States(folder, shapes, first.dtype)
        if not self.done:
            self._embed()

    @torch.inference_mode()
    def _embed(self) -> None:
        if self._task.layout.prefix:
            cache = DynamicCache(config=self._skeleton.decoder.config)
            inputs = {"cache": cache, "use_cache": True}
            states = self._skeleton.embed(self._prefix.to(self._device), inputs)
            self._states.write(0, _PREFIX, states)
        # Positions of batches begin after the prefix, which no layer has keys of yet.
        prefix = LayerPrefix(self._skeleton.decoder, len(self._task.layout.prefix), -1, None)
        for number in range(len(self._task.layout.batches)):
            ids = self._task.ids(number).to(self._device)
            states = self._skeleton.embed(ids, prefix.inputs(len(ids)))
            self._states.write(0, number + 1, states)

    def advance(self, layer: int, weights: Weights) -> None:
        """Run a layer, trace it if measures are asked for, and record that it is finished."""
        made = self._skeleton.make(layer, weights)
        if self._task.measures:
            self._trace(layer, made.get_submodule(self._skeleton.family.down))
        else:
            self._pass(layer)
        self._skeleton.drop()
        self.done = layer + 1
        record = _Record(layers=self.done, returns_tuple=self._skeleton.returns_tuple)
        write_whole(self._folder / _DONE, record.model_dump_json())

    @torch.inference_mode()
    def _trace(self, layer: int, down: nn.Module) -> None:
        task, length = self._task, len(self._task.layout.prefix)
        norms = layer_norms(down, self._skeleton.dense)
        shape = (len(task.exchanges), len(task.measures), len(task.spans), len(norms))
        values = np.lib.format.open_memmap(
            _values(self._folder, layer), mode="w+", dtype=np.float32, shape=shape
        )
        with DownHooks([down], [norms], task.measures) as hooks:
            if length:
                hooks.expect(torch.ones(1, 1, length, device=self._device))
            prefix = self._run_prefix(layer)
            sums = hooks.collect()[0, :, 0] if length else torch.zeros(())
            for number, rows in enumerate(task.layout.batches):
                values[rows] = self._trace_batch(layer, number, prefix, sums, hooks)
        del values
        np.save(_norms(self._folder, layer), norms.cpu().numpy())

    def _trace_batch(
        self, layer: int, number: int, prefix: LayerPrefix, sums: Tensor, hooks: DownHooks
    ) -> Float[np.ndarray, "batch measure span d_ff"]:
        task, start = self._task, len(self._task.layout.prefix)
        batch = [task.exchanges[row] for row in task.layout.batches[number]]
        weights = span_weights(batch, start, max(map(len, batch)) - start, task.spans)
        hooks.expect(torch.from_numpy(weights).to(self._device))
        self._run_batch(layer, number, prefix)
        found = hooks.collect()
        if "other" in task.spans and start:
            counts = torch.tensor([len(e.prompt) for e in batch], device=self._device)
            found[:, :, task.spans.index("other")] += sums / counts.view(-1, 1, 1)
        array = found.cpu().numpy()
        require_finite(array, self._skeleton.precision.name)
        return array

    @torch.inference_mode()
    def _pass(self, layer: int) -> None:
        prefix = self._run_prefix(layer)
        for number in range(len(self._task.layout.batches)):
            self._run_batch(layer, number, prefix)

    def _run_prefix(self, layer: int) -> LayerPrefix:
        """The layer's keys and values of the prefix."""
        decoder, length = self._skeleton.decoder, len(self._task.layout.prefix)
        if not length:
            return LayerPrefix(decoder, 0, layer, None)
        cache = DynamicCache(config=decoder.config)
        state = self._states.read(layer, _PREFIX).to(self._device)
        inputs = {"cache": cache, "use_cache": True}
        after = self._skeleton.run(self._prefix.to(self._device), inputs, state)
        self._states.write(layer + 1, _PREFIX, after)
        return LayerPrefix(decoder, length, layer, cache)

    def _run_batch(self, layer: int, number: int, prefix: LayerPrefix) -> None:
        ids = self._task.ids(number).to(self._device)
        state = self._states.read(layer, number + 1).to(self._device)
        after = self._skeleton.run(ids, prefix.inputs(len(ids)), state)
        self._states.write(layer + 1, number + 1, after)

    @torch.inference_mode()
    def last_hidden(self, number: int) -> Float[Tensor, "token hidden"]:
        """The last hidden states that predict the response tokens of a batch."""
        task, start = self._task, len(self._task.layout.prefix)
        batch = [task.exchanges[row] for row in task.layout.batches[number]]
        ids = task.ids(number).to(self._device)
        inputs = LayerPrefix(self._skeleton.decoder, start, -1, None).inputs(len(ids))
        state = self._states.read(self.done, number + 1).to(self._device)
        after = self._skeleton.finish(ids, inputs, state)
        # The token before each token of the response predicts it.
        spans = [(len(e.prompt) - start - 1, len(e) - start - 1) for e in batch]
        pairs = zip(after, spans, strict=True)
        return torch.cat([row[begin:end] for row, (begin, end) in pairs])


def _files_key(files: LayerFiles) -> list[object]:
    """What a checkpoint is recognised by without reading all of it."""
    used = {stored.file for layer in files.layers for stored in layer.values()}
    stats = [(str(file.resolve()), file.stat()) for file in sorted(used)]
    return [
        [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        file_digests(files.path, ("config.json",)),
    ]


def _digest(value: object) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()


class _Record(BaseModel):
    """What is known of a pass at one precision."""

    layers: int = 0  # finished
    returns_tuple: bool = False  # as in Skeleton


def _record(folder: Path) -> _Record:
    file = folder / _DONE
    return _Record.model_validate_json(file.read_bytes()) if file.is_file() else _Record()


def _taken(folder: Path, precision: str) -> bool:
    """Whether a backend has read the values of a precision already."""
    return (folder / f"{precision}.taken").is_file()


def _values(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:04}.npy"


def _norms(folder: Path, layer: int) -> Path:
    return folder / f"norms-{layer:04}.npy"
