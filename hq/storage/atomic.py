"""Files and folders that appear under their own name only when they are complete.

Each is written under a temporary name beside its target, synced, and renamed. The temporary name is
random, so that several writers of one target, threads, processes or machines, never share one: the
target is what one of them wrote, never a mixture.
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
    """A temporary path to write to; the file replaces `target` at the end, or goes on an error."""
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
    """A temporary folder to write to; it becomes `target` at the end, or goes on an error.

    Raises HQError where `target` exists, also if it appears in the meantime: a folder is never
    merged into another.
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
    """Writes a file at once; text as UTF-8, with the newlines that it has."""
    with atomic_file(target) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def require_free(target: Path) -> None:
    """Raises HQError where something of that name exists."""
    if target.exists() or target.is_symlink():
        raise HQError(f"{target} is there already: name another folder, or remove it.")


def remove_drafts(folder: Path) -> None:
    """Removes what killed writers left below a folder that nobody writes to now."""
    for path in list(folder.rglob(f".*{_SUFFIX}")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Returns once the file's content is on the disk."""
    with open(path, "r+b") as file:  # a handle that only reads cannot be synced everywhere
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes names that are new in a folder outlive a power cut, where the system can do that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != EINVAL:  # a network file system that does not sync folders
            raise
    finally:
        os.close(handle)


def _draft(target: Path) -> Path:
    """A name beside `target` that nothing has; the folder is made if it is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name[:64]}.{secrets.token_hex(8)}{_SUFFIX}")
