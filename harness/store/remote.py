"""A store that several machines share: a folder, or objects of an S3-compatible server.

Outputs are made in a folder of this machine, NAME below the cache, and copied to URL/NAME. Files
are written first, below a random name; URL/NAME/node.json is created last, by a write that fails if
the object exists. So an output is either absent or complete, and of two workers that made the same
one the first is used. Fetched files are verified by the digests in node.json.
"""

import inspect
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.store.store import DIGEST_PATTERN, NODE_FILE, Store, digest, file_digest, read_record
from hq.errors import HQError, first_line
from hq.storage.atomic import write_whole

_OBJECTS = "objects"  # of a published record: the folder of its files, and which are volatile
_PROBE_FILE = "written-once"

_log = logging.getLogger("hq")


class RemoteStore(Store):
    """Outputs at a URL of fsspec, with a copy of what this machine made or read in `cache`.

    Logs that grow, of single responses, stay on this machine. Raises HQError if the URL cannot be
    written, or does not support writing an object only if it is absent.
    """

    def __init__(self, url: str, cache: Path, fresh: bool = False) -> None:
        super().__init__(cache / digest(url), fresh)
        self.url = url
        self._records: dict[str, dict[str, Any]] = {}
        self._fs, self._base = _filesystem(self.url)
        self._require_exclusive()

    def __str__(self) -> str:
        return self.url

    def record(self, name: str) -> dict[str, Any] | None:
        """Return the record of a finished output; None if there is none or it is computed again."""
        if self._outdated(name):
            return None
        if name not in self._records:
            try:
                with self._reached():
                    content = self._fs.cat_file(f"{self._base}/{name}/{NODE_FILE}")
            except FileNotFoundError:
                return None
            self._records[name] = self._parsed(name, content)
        return _plain(self._records[name])

    def finished(self, name: str) -> Path | None:
        """Return the folder of a finished output, fetched to this machine if it is elsewhere."""
        if self.record(name) is None:
            return None
        with self._locked(name):
            return self._held(name)

    def records(self, stage: str) -> Iterator[dict[str, Any]]:
        """Yield the records of all finished outputs of a stage, newest first."""
        with self._reached():
            paths = self._fs.glob(f"{self._base}/{stage}-{DIGEST_PATTERN}/{NODE_FILE}")
            times = {str(path): self._fs.modified(path) for path in paths}
        for path in sorted(times, key=times.__getitem__, reverse=True):
            record = self.record(path.split("/")[-2])
            if record is not None:
                yield record

    def _held(self, name: str) -> Path | None:
        record, folder = self.record(name), self.root / name
        complete = (folder / NODE_FILE).is_file()
        if record is None:
            if complete:  # the process was killed before it could publish
                self._publish(name)
            return folder if complete else None
        if complete and read_record(folder) == record:
            return folder
        self._remove_folder(name)
        self._fetch(name, record)
        return folder

    def _publish(self, name: str) -> None:
        """Copy a complete folder to the URL; if another worker was faster, use what it wrote."""
        folder, attempt = self.root / name, secrets.token_hex(8)
        own = read_record(folder)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        names = sorted({path.relative_to(folder).as_posix() for path in paths} - {NODE_FILE})
        objects = {"folder": attempt, "volatile": [n for n in names if n not in own["outputs"]]}
        with self._reached():
            for file in names:
                target = f"{self._base}/{name}/{attempt}/{file}"
                self._make_parent(target)
                self._fs.put_file(str(folder / file), target)
            text = json.dumps(own | {_OBJECTS: objects}, indent=1, sort_keys=True)
            won = self._create(f"{self._base}/{name}/{NODE_FILE}", text.encode())
        if won:
            return
        with self._reached(), suppress(FileNotFoundError):
            self._fs.rm(f"{self._base}/{name}/{attempt}", recursive=True)
        other = self.record(name)
        if other is not None and other["outputs"] != own["outputs"]:
            _log.warning("Two workers made %s with different content: the first is used.", name)
        self._held(name)

    def _fetch(self, name: str, record: dict[str, Any]) -> None:
        """Copy an output from the URL into a complete folder. Raises HQError if it is damaged."""
        objects, draft = self._records[name][_OBJECTS], self.root / f"{name}.fetched"
        if draft.exists():  # of a process that was killed
            shutil.rmtree(draft)
        draft.mkdir(parents=True)
        for file in (*record["outputs"], *objects["volatile"]):
            (draft / file).parent.mkdir(parents=True, exist_ok=True)
            source = f"{self._base}/{name}/{objects['folder']}/{file}"
            try:
                with self._reached():
                    self._fs.get_file(source, str(draft / file))
            except FileNotFoundError as error:
                raise self._damaged(name, f"{file} is missing") from error
            if record["outputs"].get(file, "") not in ("", file_digest(draft / file)):
                raise self._damaged(name, f"{file} has another digest than {NODE_FILE} says")
        write_whole(draft / NODE_FILE, json.dumps(record, indent=1, sort_keys=True))
        os.rename(draft, self.root / name)

    def _remove(self, name: str) -> None:
        """Remove an output from this machine and from the URL, its record first."""
        self._remove_folder(name)
        self._records.pop(name, None)
        with self._reached():
            for path in (f"{self._base}/{name}/{NODE_FILE}", f"{self._base}/{name}"):
                with suppress(FileNotFoundError):
                    self._fs.rm(path, recursive=True)

    def _create(self, path: str, content: bytes) -> bool:
        """Create an object with its whole content; return whether it did not exist before."""
        self._make_parent(path)
        if not self._is_folder:
            try:
                self._fs.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            return True
        draft = Path(f"{path}.{secrets.token_hex(8)}")
        draft.write_bytes(content)
        try:
            os.link(draft, path)  # unlike a file that is opened, it has its content at once
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def _make_parent(self, path: str) -> None:
        """Make the folder of a file. Objects have none; s3fs would create the bucket instead."""
        if self._is_folder:
            Path(path).parent.mkdir(parents=True, exist_ok=True)

    @property
    def _is_folder(self) -> bool:
        protocol = self._fs.protocol  # one name, or several
        return "file" in (protocol if isinstance(protocol, tuple | list) else (protocol,))

    def _require_exclusive(self) -> None:
        """Raises HQError unless the URL can be written, and an object cannot be created twice."""
        writes = getattr(self._fs, "_pipe_file", self._fs.pipe_file)
        supported = self._is_folder or "mode" in inspect.signature(writes).parameters
        path = f"{self._base}/{_PROBE_FILE}"
        try:
            with self._reached():
                twice = supported and self._create(path, b"") and self._create(path, b"")
        except FileNotFoundError as error:
            raise HQError(
                f"The store {self.url} cannot be written: {first_line(error)}. Create its bucket or"
                " parent folder first."
            ) from error
        if twice or not supported:
            raise HQError(
                f"The store {self.url} cannot write an object only if it is absent, so outputs "
                "could be overwritten: use a shared folder or an S3-compatible server that supports"
                " If-None-Match."
            )

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn any error of the filesystem but a missing object into one sentence."""
        try:
            yield
        except (FileNotFoundError, HQError):
            raise
        except Exception as error:  # each filesystem has errors of its own
            raise HQError(
                f"The store {self.url} cannot be used: {first_line(error)}. Give a folder or URL "
                "that can be written, such as s3://bucket/hq, and its credentials."
            ) from error

    def _parsed(self, name: str, content: bytes) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(content)
            _ = record["outputs"], record[_OBJECTS]["folder"], record[_OBJECTS]["volatile"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(name, f"{NODE_FILE} is not a record") from error
        return record

    def _damaged(self, name: str, why: str) -> HQError:
        return HQError(
            f"The output {self.url}/{name} is damaged ({why}): remove {self.url}/{name}, and run "
            "again."
        )


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record as the machine that made the output has it."""
    return {key: value for key, value in record.items() if key != _OBJECTS}


def _filesystem(url: str) -> tuple[Any, str]:
    """Return the filesystem of a URL, and the path in it. Raises HQError."""
    try:
        import fsspec
    except ImportError as error:
        raise HQError("A store at a URL needs the package fsspec: pip install 'hq[scale]'.") from (
            error
        )
    try:
        # Listings are not cached, as other machines write too.
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise HQError(
            f"The store {url} needs a package: {first_line(error)}; for s3:// pip install "
            "'hq[scale]'."
        ) from error
    except ValueError as error:
        raise HQError(
            f"The store {url} cannot be used: {first_line(error)}. Give a folder or a URL such as "
            "s3://bucket/hq."
        ) from error
    base = str(path).rstrip("/")
    if not base:
        raise HQError(f"The store {url} names no folder or bucket: write s3://bucket/hq.")
    return fs, base
