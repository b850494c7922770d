"""Lines that hold each other: every one carries the hash of the one before, and its own.

A line is compact JSON whose first keys are `seq` and `previous` and whose last is `sha256`, the
SHA-256 of the line's own bytes without that last key. So a byte that is changed, a line that is
taken out or put in, and lines that are swapped are all found. That the last lines are gone cannot
be seen from what is left: only from a hash that was noted down elsewhere.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hq.errors import HQError

GENESIS = "0" * 64
_SEAL = re.compile(rb',"sha256":"([0-9a-f]{64})"\}\Z')


@dataclass(frozen=True, slots=True)
class Link:
    """Where a chain stands: how many lines it has, and the hash of the last."""

    count: int = 0
    sha256: str = GENESIS


class ChainError(HQError):
    """A line that does not fit; the sentence says why."""


def line_of(link: Link, content: Mapping[str, Any]) -> tuple[bytes, Link]:
    """The line that comes after, without its newline, and where the chain stands then."""
    record = {"seq": link.count, "previous": link.sha256, **content}
    body = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + f',"sha256":"{digest}"}}'.encode(), Link(link.count + 1, digest)


def content_of(line: bytes) -> tuple[dict[str, Any], str]:
    """(content, hash) of a line that is whole. Raises ChainError for one that is not."""
    seal = _SEAL.search(line)
    if seal is None:
        raise ChainError("it is no line of an audit log, or is cut off")
    body = line[: seal.start()] + b"}"
    digest = seal[1].decode()
    if hashlib.sha256(body).hexdigest() != digest:
        raise ChainError("its content is not what its hash is of: it was changed")
    try:
        content = json.loads(body)
    except ValueError as error:
        raise ChainError("it is not valid JSON") from error
    if not isinstance(content, dict):
        raise ChainError("it is no object")
    return content, digest


def follow(lines: Iterable[bytes], link: Link) -> Iterator[tuple[dict[str, Any], Link]]:
    """(content, where the chain stands then) of every line after `link`.

    Raises ChainError at the first that does not fit.
    """
    for line in lines:
        content, digest = content_of(line)
        if content.get("seq") != link.count:
            raise ChainError(
                f"it is number {content.get('seq')}, where number {link.count} belongs: lines were "
                "taken out, put in or swapped"
            )
        if content.get("previous") != link.sha256:
            raise ChainError("it does not follow the line before it: one of the two was replaced")
        link = Link(link.count + 1, digest)
        yield content, link
