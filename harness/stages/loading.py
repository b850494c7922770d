"""The study's checkpoint at each precision, and what results of a loaded model depend on."""

from pathlib import Path

from harness.models.sources import gguf_of
from harness.store.environment import engine
from harness.store.store import digest
from harness.studies.study import Study
from hq.backends.base import Backend
from hq.backends.opening import open_backend
from hq.gguf.file import GGUFFile
from hq.models.checkpoint import file_digests, fingerprint, resolve
from hq.neurons.neuron_set import GGUF_ORIGIN, ModelIdentity
from hq.precisions import BACKEND_OF
from hq.precisions.gguf import GGUF_SOURCE, file_precision
from hq.precisions.packed import NATIVE
from hq.precisions.packed_checkpoints.checkpoint import CONFIG_FILES

SPELLING = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
"""Files that define the text of tokens."""


class _Loaded:
    """The loaded model, if any, and where it is from."""

    def __init__(self) -> None:
        self.backend: Backend | None = None
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

    def close(self) -> None:
        """Free the loaded model."""
        self._loaded.close()

    def open(self, precision: str, made: Path | None = None) -> Backend:
        """Load the model at a precision, after freeing another one.

        `made` is the GGUF file or packed checkpoint that hq made for the precision, if any.
        """
        source = made or self.given(precision) or self.path
        loaded = self._loaded.backend
        if loaded is None or loaded.precision != precision or self._loaded.source != source:
            self.close()
            loaded = open_backend(source, precision, self.study.device, self.identity)
            self._loaded.backend, self._loaded.source = loaded, source
        return loaded

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
