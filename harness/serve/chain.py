"""Lines that hold each other: every one carries the hash of the one before, and its own.

A line is compact JSON whose first keys are `seq` and `previous` and whose last is `sha256`, the
SHA-256 of the line's own bytes without that last key. So a byte that is changed, a line that is
taken out or put in, and lines that are swapped are all found. That the last lines are gone cannot
be seen from what is left: only from a hash that was noted down elsewhere.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hq.errors import HQError

GENESIS = "0" * 64
_SEAL = re.compile(rb',"sha256":"([0-9a-f]{64})"\}\n\Z')


@dataclass(frozen=True, slots=True)
class Link:
    """Where a chain stands: how many lines it has, and the hash of the last."""

    count: int = 0
    sha256: str = GENESIS


class ChainError(HQError):
    """A line that does not fit; the sentence says why."""


def line_of(link: Link, content: Mapping[str, Any]) -> tuple[bytes, Link]:
    """The line that comes next, with its newline, and where the chain stands then."""
    record = {"seq": link.count, "previous": link.sha256, **content}
    body = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + f',"sha256":"{digest}"}}\n'.encode(), Link(link.count + 1, digest)


def content_of(line: bytes) -> tuple[dict[str, Any], Link]:
    """What a line says, and where the chain stands with it. Raises ChainError for a damaged one."""
    seal = _SEAL.search(line)
    if seal is None:
        raise ChainError("it is no line of an audit log, or was cut off")
    body, digest = line[: seal.start()] + b"}", seal[1].decode()
    if hashlib.sha256(body).hexdigest() != digest:
        raise ChainError("its hash is not that of its content: it was changed")
    try:
        content = json.loads(body)
        return content, Link(int(content["seq"]) + 1, digest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ChainError("it is no line of an audit log") from error


def linked(line: bytes, link: Link) -> tuple[dict[str, Any], Link]:
    """The same for the line that comes after `link`. Raises ChainError for any other."""
    content, found = content_of(line)
    if found.count != link.count + 1:
        raise ChainError(
            f"it is number {found.count - 1} where number {link.count} belongs: lines were taken "
            "out, put in or swapped"
        )
    if content.get("previous") != link.sha256:
        raise ChainError("it does not follow the line before it: one of the two was replaced")
    return content, found
