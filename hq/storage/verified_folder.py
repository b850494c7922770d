"""A sealed folder: few small files, each named in a manifest with its size and SHA-256.

Nothing else may lie in it, and nothing in it is read before it is known to be what was sealed.
What is read is read once: the bytes that were checked are the bytes that are used. It is no
signature: who can write the folder can write another, which then has another digest.
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
_LARGEST = 1 << 26  # bytes of a file: 64 MiB, far above what any needs
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class VerifiedFolder:
    """What a sealed folder held."""

    digest: str  # SHA-256 of the manifest, which names every other file's: hex
    facts: Mapping[str, Any]  # what the manifest says beside files and schema version
    files: Mapping[str, bytes]


def write_verified_folder(
    folder: Path, version: int, facts: Mapping[str, object], files: Mapping[str, bytes]
) -> None:
    """Write the files and their manifest; the folder appears when it is complete.

    Raises HQError where something of that name exists.
    """
    entries = {name: _entry(content) for name, content in sorted(files.items())}
    manifest = {"schema_version": version, **facts, "files": entries}
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_folder(folder) as draft:
        for name, content in {**files, MANIFEST: text.encode()}.items():
            (draft / name).write_bytes(content)


def read_verified_folder(folder: Path, version: int, names: frozenset[str]) -> VerifiedFolder:
    """Reads a folder that holds the files `names` and the manifest, and checks every byte.

    Raises HQError for a manifest that cannot be read or is of another version, a file that is
    missing, added, changed, no plain file of the folder, or that the manifest should not name.
    """
    present = _listed(folder)
    if MANIFEST not in present:
        raise HQError(f"{folder} has no {MANIFEST}: give the folder that `hq bundle make` wrote.")
    text = _read(folder / MANIFEST, _LARGEST)
    manifest = _manifest(folder / MANIFEST, text, version)
    entries = manifest.pop("files")
    for name in sorted(entries.keys() | names):
        if name not in names:
            raise _damaged(folder, f"its manifest names {name!r}, which no bundle has")
        if name not in entries:
            raise _damaged(folder, f"its manifest does not name {name}")
        if name not in present:
            raise _damaged(folder, f"{name} is missing")
    extra = present - names - {MANIFEST}
    if extra:
        raise _damaged(folder, f"{min(extra)!r} lies in it, which its manifest does not name")
    files = {name: _checked(folder / name, entries[name]) for name in sorted(names)}
    return VerifiedFolder(hashlib.sha256(text).hexdigest(), manifest, files)


def sha256_of(*paths: Path) -> str:
    """SHA-256 of a file of any size, hex; of several, one after the other."""
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
        raise HQError(f"{path} is no manifest: make the bundle again.")
    found = manifest.pop("schema_version", None)
    if found != version or isinstance(found, bool):
        raise HQError(
            f"{path} has schema version {found!r} but this hq reads {version}: make the bundle "
            "again with this version."
        )
    if not isinstance(manifest.get("files"), dict):
        raise HQError(f"{path} names no files: make the bundle again.")
    return manifest


def _checked(path: Path, entry: object) -> bytes:
    """The file's bytes, if they are those that the manifest's entry is of."""
    if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int):
        raise _damaged(path.parent, f"its manifest does not say what {path.name} holds")
    content = _read(path, entry["bytes"])
    if _entry(content) != entry:
        raise _damaged(path.parent, f"{path.name} is not what was sealed: its SHA-256 differs")
    return content


def _read(path: Path, limit: int) -> bytes:
    """All bytes of a plain file that is not larger than `limit`; a link is not followed."""
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise _damaged(path.parent, f"{path.name} is a link to elsewhere")
        if not stat.S_ISREG(status.st_mode):
            raise _damaged(path.parent, f"{path.name} is no plain file")
        if status.st_size > min(limit, _LARGEST):
            raise _damaged(path.parent, f"{path.name} is longer than what was sealed")
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path.parent, f"{path.name} cannot be read ({error.strerror})") from error


def _entry(content: bytes) -> dict[str, object]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _damaged(folder: Path, what: str) -> HQError:
    return HQError(f"The bundle {folder} is refused: {what}; get it again from where it was made.")
