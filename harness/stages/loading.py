"""The study's checkpoint at each precision, and what results of a loaded model depend on."""

import logging
from functools import cached_property
from pathlib import Path

from harness.models.sources import gguf_of
from harness.store.environment import available_memory, engine
from harness.store.progress import Task
from harness.store.store import digest
from harness.studies.study import Study
from hq.backends.base import Backend
from hq.backends.opening import open_backend
from hq.backends.streamed.backend import StreamedBackend, unstreamable
from hq.backends.streamed.passes import Passes
from hq.gguf.file import GGUFFile
from hq.models.checkpoint import file_digests, fingerprint, resolve, weight_files
from hq.models.placement import AUTO
from hq.neurons.neuron_set import GGUF_ORIGIN, ModelIdentity
from hq.precisions import BACKEND_OF
from hq.precisions.gguf import GGUF_SOURCE, file_precision
from hq.precisions.packed import NATIVE
from hq.precisions.packed_checkpoints.checkpoint import CONFIG_FILES
from hq.storage.places import cache_folder

_log = logging.getLogger("hq")

SPELLING = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
"""Files that define the text of tokens."""


class _Loaded:
    """The loaded model, if any, and where it is from."""

    def __init__(self) -> None:
        self.backend: Backend | None = None
        self.streamed = False
        self.source: Path | None = None

    def close(self) -> None:
        if self.backend is not None:
            self.backend.close()
            self.backend = None


class Models:
    """The checkpoint `path` at any precision, with at most one loaded model."""

    def __init__(
        self, study: Study, path: Path, identity: ModelIdentity, beside: "Models | None" = None
    ) -> None:
        """Prepare to load a checkpoint.

        Args:
            study: The study, with the device and packed checkpoints.
            path: The checkpoint's folder.
            identity: Its identity.
            beside: Another checkpoint: of the two, at most one model is loaded.
        """
        self.study = study
        self.path = path
        self.identity = identity
        self._loaded: _Loaded = _Loaded() if beside is None else beside._loaded
        self._fingerprints: dict[str, str] = {}
        self._streamed: dict[str, bool] = {}

    def close(self) -> None:
        """Free the loaded model."""
        self._loaded.close()

    def open(self, precision: str, made: Path | None = None, streams: bool = False) -> Backend:
        """Load the model at a precision, after freeing another one.

        Args:
            precision: Its name.
            made: The GGUF file or packed checkpoint that hq made for the precision, if any.
            streams: Whether one layer at a time is enough; then a model that does not fit into
                memory is not loaded.
        """
        source = made or self.given(precision) or self.path
        streamed = streams and self.streams(precision)
        loaded, held = self._loaded.backend, (self._loaded.source, self._loaded.streamed)
        if loaded is None or loaded.precision != precision or held != (source, streamed):
            self.close()
            if streamed:
                loaded = StreamedBackend(
                    source,
                    precision,
                    None if self.study.device == AUTO else self.study.device,
                    model_identity=self.identity,
                    passes=self.passes,
                )
            else:
                loaded = open_backend(source, precision, self.study.device, self.identity)
            self._loaded.backend = loaded
            self._loaded.source, self._loaded.streamed = source, streamed
        return loaded

    @cached_property
    def passes(self) -> Passes:
        """Traces that read the checkpoint layer by layer, at all precisions of the study."""
        able = [p for p in self.study.precisions if self.streams(p)]
        return Passes(cache_folder() / "streamed", able)

    def show_layers(self, task: Task) -> None:
        """Show the progress of passes beside that of a task."""
        self.passes.watch = lambda done, layers: task.note(f"layer {done} of {layers}")

    def streams(self, precision: str) -> bool:
        """Whether steps that can are run with one layer in memory, by the study or the memory.

        The first answer holds, which is given when nodes are declared: later a loaded model takes
        memory that it frees before the next one is opened.
        """
        if precision not in self._streamed:
            self._streamed[precision] = self._must_stream(precision)
        return self._streamed[precision]

    def _must_stream(self, precision: str) -> bool:
        if self.study.stream != "auto":
            return self.study.stream == "always"
        needed, available = self.resident(precision), available_memory(self.study.device)
        if needed <= available or unstreamable(self.given(precision) or self.path, precision):
            return False
        _log.warning(
            "%s at %s takes %.1f GiB of memory and %.1f are available: its traces read it layer by "
            "layer. The numbers do not change.",
            self.identity.name,
            precision,
            needed / 2**30,
            available / 2**30,
        )
        return True

    def resident(self, precision: str) -> int:
        """Estimate the bytes of the loaded model: float32 on a CPU, 16 bits elsewhere."""
        dense = BACKEND_OF[precision] == "torch" and self.study.device not in ("cuda", AUTO)
        return self.weights * (4 if dense else 2)

    @cached_property
    def weights(self) -> int:
        """Number of weights of the checkpoint, by the size of its files at 16 bits per weight."""
        return sum(file.stat().st_size for file in weight_files(self.path)) // 2

    def given(self, precision: str) -> Path | None:
        """Return the file or folder that the study gives for a precision; None if it gives none."""
        if file_precision(precision) == GGUF_SOURCE:
            return gguf_of(self.study.model)
        name = precision.removesuffix(NATIVE)
        if name in self.study.checkpoints:
            return resolve(self.study.checkpoints[name])
        return None

    def parameters(self, precision: str, also: tuple[str, ...] = ()) -> dict[str, object]:
        """Return what a result at a precision depends on, with digests of the files `also`.

        A GGUF file or packed checkpoint that hq makes is not included: it is an input of the node.
        """
        return engine(precision, self.study.device) | {
            "model": self.identity.fingerprint,
            "files": file_digests(self.path, ("config.json", *also)),
            "precision": precision,
            **self._given_digest(precision),
        }

    def _given_digest(self, precision: str) -> dict[str, str]:
        given = self.given(precision)
        if given is None:
            return {}
        if precision not in self._fingerprints:  # reads the whole file, so only once
            if BACKEND_OF[precision] == "torch":  # its config defines the packed format
                parts = [fingerprint(given), file_digests(given, CONFIG_FILES)]
                self._fingerprints[precision] = digest(parts)
            else:
                self._fingerprints[precision] = GGUF_ORIGIN + GGUFFile(given).fingerprint
        return {"given": self._fingerprints[precision]}
