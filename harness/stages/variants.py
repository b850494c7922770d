"""What runs a model at each precision: its file, its neurons' places, and the model, loaded."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

from harness.models.sources import gguf_of
from harness.stages import gguf, mapping, pack
from harness.store.environment import CONVERT, PACK, engine, versions
from harness.store.progress import Progress
from harness.store.store import Store, digest
from harness.studies.study import REFERENCE, Study
from hq.backends.base import Backend
from hq.backends.opening import open_backend
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.models.checkpoint import file_digests, fingerprint, resolve
from hq.models.ffn_weights import of_checkpoint
from hq.neurons.neuron_set import GGUF_ORIGIN, ModelIdentity
from hq.precisions import BACKEND_OF
from hq.precisions.gguf import GGUF_PREFIX, GGUF_SOURCE
from hq.precisions.packed import NATIVE, RECIPES, recipe_of
from hq.precisions.packed_checkpoints.checkpoint import CONFIG_FILES
from hq.precisions.packed_checkpoints.quantizers import QUANTIZERS

SPELLING = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
"""Files that decide what tokens are as text."""


@dataclass
class Variants:
    """A study's model at any precision; one is loaded at a time."""

    study: Study
    store: Store
    progress: Progress
    path: Path  # the checkpoint
    model: ModelIdentity
    calibration: Callable[[], list[tuple[int, ...]]]  # texts that quantizers may see

    def __post_init__(self) -> None:
        self._loaded: Backend | None = None
        self._fingerprints: dict[str, str] = {}

    def close(self) -> None:
        """Frees the loaded model."""
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    def runs_on(self, precision: str, also: tuple[str, ...] = ()) -> dict[str, object]:
        """What the model computes depends on, with digests of the files `also`."""
        return engine(precision, self.study.device) | {
            "model": self.model.fingerprint,
            "files": file_digests(self.path, ("config.json", *also)),
            "precision": precision,
            **self._file(precision),
        }

    def mapping(self, precision: str) -> Path:
        """Stage `map`: where a precision has the source's neurons."""
        inputs = self.runs_on(precision)

        def make(folder: Path) -> None:
            with self.progress.task(f"map {precision}", self.model.n_layers, "layers") as task:
                variant = self._load(precision).ffns()
                mapping.build(folder, of_checkpoint(self.path), variant, task)

        return self.store.build(mapping.STAGE, inputs, make)

    def backend(self, precision: str) -> Backend:
        """The model at a precision, its neurons where the source has them.

        Raises HQError where they are not the source's neurons: no figure is taken there.
        """
        folder = self.mapping(precision)
        mapping.require(folder, precision)
        return mapping.mapped(folder, self._load(precision))

    def require_given(self) -> None:
        """Compares what the study was given, before anything is sampled: the rest hq makes itself.

        Raises HQError where a checkpoint's or file's neurons are not the source's.
        """
        for precision in self.study.precisions:
            given = precision.removesuffix(NATIVE) in self.study.checkpoints
            if given or precision in (REFERENCE, GGUF_SOURCE):
                mapping.require(self.mapping(precision), precision)

    def _load(self, precision: str) -> Backend:
        """The model at a precision; the one loaded before is freed."""
        if self._loaded is None or self._loaded.precision != precision:
            self.close()
            self._loaded = open_backend(
                self._source(precision), precision, self.study.device, self.model
            )
        return self._loaded

    def _source(self, precision: str) -> Path:
        """What the precision's backend opens."""
        if recipe_of(precision):
            return self.packed(precision)
        return self.path if BACKEND_OF[precision] == "torch" else self.gguf_file(precision)

    def gguf_file(self, precision: str) -> Path:
        """Stage `gguf`: the file of a precision; that of `gguf-source` is the study's own."""
        if precision == GGUF_SOURCE:
            return gguf_of(self.study.model)
        kind = precision.removeprefix(GGUF_PREFIX)
        inputs = {
            "packages": versions(*CONVERT),
            "model": self.model.fingerprint,
            "files": file_digests(self.path, ("config.json", *SPELLING)),
            "kind": kind,
        }

        def make(folder: Path) -> None:
            dense = partial(self.gguf_file, GGUF_PREFIX + "f16")
            gguf.make(folder, kind, self.path, self.model, dense)

        return self.store.build(gguf.STAGE, inputs, make) / gguf.FILE

    def packed(self, precision: str) -> Path:
        """The packed checkpoint of a precision: the study's own, or that of stage `pack`.

        Raises HQError where the study names none, and hq makes none.
        """
        name = precision.removesuffix(NATIVE)
        if name in self.study.checkpoints:
            return resolve(self.study.checkpoints[name])
        section, recipe = self.study.pack, RECIPES[name]
        if not recipe.has_quantizer:
            raise HQError(
                f"{name} is read, never made: name such a checkpoint of the model under "
                "[checkpoints] in the study."
            )
        texts = self.calibration()
        inputs = {
            "packages": versions(*PACK[recipe.method]),
            "maker": QUANTIZERS[recipe.method].version,
            "model": self.model.fingerprint,
            "files": file_digests(self.path, ("config.json", *SPELLING)),
            "recipe": asdict(recipe),
            "pack": section.model_dump(exclude={"text"}),
            "texts": digest(texts),
        }

        def make(folder: Path) -> None:
            with self.progress.task(f"make {name}", self.model.n_layers, "layers") as task:
                pack.pack(folder, self.path, recipe, section, texts, task)

        return self.store.build(pack.STAGE, inputs, make) / pack.FOLDER

    def _file(self, precision: str) -> dict[str, object]:
        """Which file or checkpoint runs a precision; nothing where the model's own does."""
        if recipe_of(precision):
            name = precision.removesuffix(NATIVE)
            if name in self.study.checkpoints:
                return {"packed": self._fingerprint_of(name)}
            return {"packed": self.packed(name).parent.name}
        if BACKEND_OF[precision] == "torch":
            return {}
        if precision == GGUF_SOURCE:
            return {"gguf": self._given}
        return {"gguf": self.gguf_file(precision).parent.name}

    def _fingerprint_of(self, name: str) -> str:
        """That of a checkpoint that the study gives for a precision: all that is in it, read once.

        Its config too, as that says what the packed bytes stand for.
        """
        if name not in self._fingerprints:
            path = self.packed(name)
            whole = [fingerprint(path), file_digests(path, CONFIG_FILES)]
            self._fingerprints[name] = digest(whole)
        return self._fingerprints[name]

    @cached_property
    def _given(self) -> str:
        """Fingerprint of the file that the model is given as: all its bytes, read once."""
        return GGUF_ORIGIN + GGUFFile(gguf_of(self.study.model)).fingerprint
