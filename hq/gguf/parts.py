"""Open a GGUF model of one file, or of the parts that llama-gguf-split made of it."""

import mmap
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hq.errors import HQError
from hq.gguf.header import Header, TensorInfo, cut_off, damaged, read_header

_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.I)
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


@dataclass(frozen=True, slots=True)
class FilePart:
    """One file, mapped read-only."""

    path: Path
    data: mmap.mmap
    header: Header
    stamp: str  # size, modification time, and digest of the header


def open_parts(path: Path) -> tuple[FilePart, ...]:
    """Open the parts, in order, of the model whose first or only file is `path`.

    Raises HQError if a file is damaged or missing, if `path` is not the first part, or if the
    parts do not belong together.
    """
    first = _open(path)
    count = _count(first, _COUNT, 1)
    if count <= 1:
        return (first,)
    match = _NAME.fullmatch(path.name)
    number = _count(first, _NUMBER, 0)
    if match is None or int(match["count"]) != count or int(match["number"]) != number + 1:
        raise HQError(
            f"{path} is part {number + 1} of {count} but its name does not end in "
            f"-{number + 1:05}-of-{count:05}.gguf, so its other parts cannot be found: give all "
            "parts the names under which they were published."
        )
    paths = [
        path.with_name(f"{match['stem']}-{k:05}-of-{match['count']}{match['suffix']}")
        for k in range(1, count + 1)
    ]
    if number != 0:
        raise HQError(f"{path} is part {number + 1} of {count}: name the first, {paths[0]}.")
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        others = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise HQError(
            f"{path} is part 1 of {count}, but {missing[0]}{others} is missing: put all parts into "
            "one folder."
        )
    parts = (first, *map(_open, paths[1:]))
    for number, part in enumerate(parts):
        if (_count(part, _NUMBER, 0), _count(part, _COUNT, 1)) != (number, count):
            raise damaged(part.path, f"it is not part {number + 1} of {count}")
    return parts


def locate_tensors(parts: Sequence[FilePart]) -> dict[str, tuple[FilePart, TensorInfo]]:
    """Map the name of each tensor to the part that stores it and its info, in the parts' order.

    Raises HQError if two parts store a tensor of the same name, or if their number of tensors is
    not the declared one.
    """
    located: dict[str, tuple[FilePart, TensorInfo]] = {}
    for part in parts:
        for name, tensor in part.header.tensors.items():
            if name in located:
                other = located[name][0].path.name
                raise damaged(part.path, f"the tensor {name} is in {other} too")
            located[name] = part, tensor
    declared = _count(parts[0], _TENSORS, len(located)) if len(parts) > 1 else len(located)
    if declared != len(located):
        raise damaged(parts[0].path, f"its parts have {len(located)} tensors, not {declared}")
    return located


def _count(part: FilePart, key: str, default: int) -> int:
    """A count or index in the metadata."""
    value = part.header.metadata.get(key, default)
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise damaged(part.path, f"{key} cannot be {value!r}")
    return value


def _open(path: Path) -> FilePart:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:
                raise cut_off(path)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise HQError(
            f"The GGUF file {path} cannot be read ({error.strerror}): name an existing file."
        ) from error
    header = read_header(path, data)
    return FilePart(path, data, header, f"{status.st_size} {status.st_mtime_ns} {header.digest}")
