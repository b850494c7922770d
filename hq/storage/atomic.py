"""Atomic writes: files and folders that appear under their name only when they are complete.

Each is written under a temporary name in the target's folder, synced, and renamed. The temporary
name is random, so concurrent writers of one target (threads, processes or machines) do not share
it: the target is what one of them wrote, never a mixture.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EINVAL
from pathlib import Path

from hq.errors import HQError

_SUFFIX = ".draft"


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path; the file replaces `target` at the end, or is removed on an error."""
    draft = _draft(target)
    try:
        yield draft
        sync_file(draft)
        os.replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder; it becomes `target` at the end, or is removed on an error.

    Raises HQError if `target` exists, also if it is created meanwhile: folders are never merged.
    """
    require_free(target)
    draft = _draft(target)
    draft.mkdir()
    try:
        yield draft
        for path in draft.rglob("*"):
            if path.is_file():
                sync_file(path)
        require_free(target)
        try:
            os.rename(draft, target)
        except OSError:
            require_free(target)  # another writer was faster
            raise
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(target.parent)


def write_whole(target: Path, content: str | bytes) -> None:
    """Write a file atomically; text as UTF-8 with unchanged newlines."""
    with atomic_file(target) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def require_free(target: Path) -> None:
    """Raise HQError if the path exists."""
    if target.exists() or target.is_symlink():
        raise HQError(f"{target} is there already: name another folder, or remove it.")


def remove_drafts(folder: Path) -> None:
    """Remove what killed writers left in a folder, in which nothing may be writing now."""
    for path in list(folder.rglob(f".*{_SUFFIX}")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Return when the content of the file is on the disk."""
    with open(path, "r+b") as file:  # some systems cannot sync a read-only handle
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Return when new names in a folder are on the disk, if the system supports that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != EINVAL:  # EINVAL: a network file system that does not sync folders
            raise
    finally:
        os.close(handle)


def _draft(target: Path) -> Path:
    """Return an unused name in the folder of `target`, which is created if it is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name[:64]}.{secrets.token_hex(8)}{_SUFFIX}")
