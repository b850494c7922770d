"""The outputs of finished nodes: their records at once, their files when they are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.store.node import Node, Output
from harness.store.store import Store, digest
from hq.errors import HQError


class Outputs:
    """The folders of finished nodes. A folder of a remote store is fetched at its first use."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._names: dict[str, str] = {}
        self._records: dict[str, dict[str, Any]] = {}
        self._folders: dict[str, Path] = {}

    def __getitem__(self, node: Node) -> Path:
        name = self._names[node.identity]
        if name not in self._folders:
            folder = self._store.finished(name)
            if folder is None:
                raise HQError(f"The output {name} was removed during the run: run again.")
            self._folders[name] = folder
        return self._folders[name]

    def __contains__(self, node: Node) -> bool:
        return node.identity in self._names

    def add(self, node: Node, name: str, record: dict[str, Any]) -> None:
        """Add a finished node, with its name and record in the store."""
        self._names[node.identity], self._records[node.identity] = name, record

    def digest(self, output: Output) -> str:
        """Return the content digest of an output, or of some of its files."""
        files: Mapping[str, str] = self._records[output.node.identity]["outputs"]
        return digest([files[name] for name in output.files] if output.files else dict(files))

    def record(self, node: Node) -> dict[str, Any]:
        """Return everything a node was computed from, and the content digest of its output."""
        name = self._names[node.identity]
        record = dict(self._store.record(name) or self._records[node.identity])
        record.pop("seconds")
        return record | {"outputs": digest(record["outputs"])}
