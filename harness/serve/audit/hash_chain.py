"""The hash chain: each line of the log contains the previous line's hash and its own.

A line is compact JSON whose first keys are `seq` and `previous`. Its last key is `sha256`, the
SHA-256 of the line's bytes without that key. Changed bytes and removed, inserted or swapped lines
are therefore detected. Lines removed from the end can only be detected with a hash that was stored
elsewhere.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hq.errors import HQError

GENESIS = "0" * 64  # `previous` of the first line
_HASH_FIELD = re.compile(rb',"sha256":"([0-9a-f]{64})"\}\n\Z')


@dataclass(frozen=True, slots=True)
class Link:
    """The end of a chain: number of lines, and hash of the last one."""

    count: int = 0
    sha256: str = GENESIS


class ChainError(HQError):
    """A line does not fit into the chain; the message says why."""


def encode_line(link: Link, content: Mapping[str, Any]) -> tuple[bytes, Link]:
    """Return the next line, newline included, and the end of the chain after it."""
    record = {"seq": link.count, "previous": link.sha256, **content}
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    body = text.encode(errors="backslashreplace")  # writes single surrogates as JSON escapes
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + f',"sha256":"{digest}"}}\n'.encode(), Link(link.count + 1, digest)


def decode_line(line: bytes) -> tuple[dict[str, Any], Link]:
    """Return a line's content and the end of the chain after it.

    Raises ChainError if the line is damaged.
    """
    hash_field = _HASH_FIELD.search(line)
    if hash_field is None:
        raise ChainError("it is not a line of an audit log, or is cut off")
    body, digest = line[: hash_field.start()] + b"}", hash_field[1].decode()
    if hashlib.sha256(body).hexdigest() != digest:
        raise ChainError("its hash does not match its content: it was changed")
    try:
        content = json.loads(body)
        return content, Link(int(content["seq"]) + 1, digest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ChainError("it is not a line of an audit log") from error


def verify_line(line: bytes, link: Link) -> tuple[dict[str, Any], Link]:
    """Decode the line after `link`. Raises ChainError if it is damaged or does not follow."""
    content, end = decode_line(line)
    if end.count != link.count + 1:
        raise ChainError(
            f"it has number {end.count - 1} instead of {link.count}: lines were removed, inserted "
            "or swapped"
        )
    if content.get("previous") != link.sha256:
        raise ChainError("it does not contain the previous line's hash: one of them was replaced")
    return content, end
