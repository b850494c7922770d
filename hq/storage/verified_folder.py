"""A verified folder: a few small files and a manifest with the size and SHA-256 of each.

The folder may contain nothing else, and no content is used before it is verified. Each file is read
once: the bytes that are verified are the bytes that are used. This is not a signature: whoever can
write to the folder can replace it by another one, which then has another digest.
"""

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hq.errors import HQError
from hq.storage.atomic import atomic_folder

MANIFEST = "manifest.json"
_LARGEST = 1 << 26  # bytes of a file: 64 MiB, far more than any needs
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class VerifiedFolder:
    """The content of a verified folder."""

    digest: str  # hexadecimal SHA-256 of the manifest, which contains those of the files
    facts: Mapping[str, Any]  # the other entries of the manifest
    files: Mapping[str, bytes]


def write_verified_folder(
    folder: Path, version: int, facts: Mapping[str, object], files: Mapping[str, bytes]
) -> None:
    """Write files and their manifest into a new folder, atomically.

    Raises HQError if the folder exists.
    """
    entries = {name: _entry(content) for name, content in sorted(files.items())}
    manifest = {"schema_version": version, **facts, "files": entries}
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_folder(folder) as draft:
        for name, content in {**files, MANIFEST: text.encode()}.items():
            (draft / name).write_bytes(content)


def read_verified_folder(folder: Path, version: int, names: frozenset[str]) -> VerifiedFolder:
    """Read and verify a folder with the files `names` and a manifest.

    Raises HQError if the manifest cannot be read or has another version, or a file is missing,
    additional, changed, not a regular file of the folder, or not in `names`.
    """
    present = _listed(folder)
    if MANIFEST not in present:
        raise HQError(f"{folder} has no {MANIFEST}: give the folder that `hq bundle make` wrote.")
    text = _read(folder / MANIFEST, _LARGEST)
    manifest = _manifest(folder / MANIFEST, text, version)
    entries = manifest.pop("files")
    for name in sorted(entries.keys() | names):
        if name not in names:
            raise _damaged(folder, f"its manifest lists {name!r}, which no bundle has")
        if name not in entries:
            raise _damaged(folder, f"its manifest does not list {name}")
        if name not in present:
            raise _damaged(folder, f"{name} is missing")
    extra = present - names - {MANIFEST}
    if extra:
        raise _damaged(folder, f"it contains {min(extra)!r}, which its manifest does not list")
    files = {name: _checked(folder / name, entries[name]) for name in sorted(names)}
    return VerifiedFolder(hashlib.sha256(text).hexdigest(), manifest, files)


def sha256_of(*paths: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, or of several files one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _listed(folder: Path) -> frozenset[str]:
    try:
        return frozenset(path.name for path in folder.iterdir())
    except OSError as error:
        raise HQError(
            f"The bundle {folder} cannot be read ({error.strerror}): give the folder that "
            "`hq bundle make` wrote."
        ) from error


def _manifest(path: Path, text: bytes, version: int) -> dict[str, Any]:
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HQError(f"{path} is not valid JSON: make the bundle again.") from error
    if not isinstance(manifest, dict):
        raise HQError(f"{path} is not a manifest: make the bundle again.")
    stated = manifest.pop("schema_version", None)
    if stated != version or isinstance(stated, bool):
        raise HQError(
            f"{path} has schema version {stated!r} but this hq reads {version}: make the bundle "
            "again with this version."
        )
    if not isinstance(manifest.get("files"), dict):
        raise HQError(f"{path} lists no files: make the bundle again.")
    return manifest


def _checked(path: Path, entry: object) -> bytes:
    """Return the bytes of a file after comparing them with its entry in the manifest."""
    if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int):
        raise _damaged(path.parent, f"its manifest has no size of {path.name}")
    content = _read(path, entry["bytes"])
    if _entry(content) != entry:
        raise _damaged(path.parent, f"{path.name} was changed: its SHA-256 differs")
    return content


def _read(path: Path, limit: int) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes; links are not followed."""
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise _damaged(path.parent, f"{path.name} is a link")
        if not stat.S_ISREG(status.st_mode):
            raise _damaged(path.parent, f"{path.name} is not a regular file")
        if status.st_size > min(limit, _LARGEST):
            raise _damaged(path.parent, f"{path.name} is larger than its manifest says")
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path.parent, f"{path.name} cannot be read ({error.strerror})") from error


def _entry(content: bytes) -> dict[str, object]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _damaged(folder: Path, cause: str) -> HQError:
    return HQError(f"The bundle {folder} cannot be used: {cause}; copy it again from its source.")
