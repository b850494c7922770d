"""The parts of a GGUF file: one, or as many as llama-gguf-split made of it."""

import mmap
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hq.errors import HQError
from hq.gguf.header import Header, Tensor, cut_off, damaged, read_header

_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.I)
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


@dataclass(frozen=True, slots=True)
class FilePart:
    """One file, mapped read-only."""

    path: Path
    data: mmap.mmap
    header: Header
    stamp: str  # its size, its time, and its header's digest


def open_parts(path: Path) -> tuple[FilePart, ...]:
    """The parts of the model whose first, or only, file is `path`, in order.

    Raises HQError for a file that is damaged or missing, another part than the first, and parts of
    different models.
    """
    first = _open(path)
    count = _whole(first, _COUNT, 1)
    if count <= 1:
        return (first,)
    match = _NAME.fullmatch(path.name)
    number = _whole(first, _NUMBER, 0)
    if match is None or int(match["count"]) != count or int(match["number"]) != number + 1:
        raise HQError(
            f"{path} is part {number + 1} of {count} but its name does not end in "
            f"-{number + 1:05}-of-{count:05}.gguf, so that its other parts cannot be found: give "
            "all parts the names that they were published under."
        )
    named = [
        path.with_name(f"{match['stem']}-{k:05}-of-{match['count']}{match['suffix']}")
        for k in range(1, count + 1)
    ]
    if number != 0:
        raise HQError(f"{path} is part {number + 1} of {count}: name the first, {named[0]}.")
    missing = [part.name for part in named if not part.exists()]
    if missing:
        others = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise HQError(
            f"{path} is part 1 of {count}, and {missing[0]}{others} is missing: put all parts into "
            "one folder."
        )
    parts = (first, *map(_open, named[1:]))
    for number, part in enumerate(parts):
        if (_whole(part, _NUMBER, 0), _whole(part, _COUNT, 1)) != (number, count):
            raise damaged(part.path, f"it is not part {number + 1} of {count}")
    return parts


def tensors_of(parts: Sequence[FilePart]) -> dict[str, tuple[FilePart, Tensor]]:
    """Every tensor and the part that holds it, by its name, in the order of the parts.

    Raises HQError for a tensor that two parts hold, and for another number than the parts name.
    """
    found: dict[str, tuple[FilePart, Tensor]] = {}
    for part in parts:
        for name, tensor in part.header.tensors.items():
            if name in found:
                raise damaged(part.path, f"the tensor {name} is in {found[name][0].path.name} too")
            found[name] = part, tensor
    said = _whole(parts[0], _TENSORS, len(found)) if len(parts) > 1 else len(found)
    if said != len(found):
        raise damaged(parts[0].path, f"its parts hold {len(found)} tensors, not {said}")
    return found


def _whole(part: FilePart, key: str, default: int) -> int:
    """A count among the metadata."""
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
            f"The GGUF file {path} cannot be read ({error.strerror}): name a file that is there."
        ) from error
    header = read_header(path, data)
    return FilePart(path, data, header, f"{status.st_size} {status.st_mtime_ns} {header.digest}")
