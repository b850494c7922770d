"""Files of responses: what the model answered to each question of a study, to use it elsewhere.

A file is gzip-compressed JSON lines: a header, then one line per question. What the study's
questions, model and judge give again is left out, such as the token ids of prompts.
"""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.stages.sample import JudgedResponse
from harness.stages.samples import Prompted
from harness.store.store import digest
from hq.errors import HQError
from hq.storage.atomic import write_whole

FORMAT = "hq responses"
VERSION = 1
_AGAIN = "export it again with `hq responses export`"
_T = TypeVar("_T", bound=BaseModel)


class Header(BaseModel):
    """The first line: how the responses were sampled and judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    version: int
    model: str  # fingerprint of the checkpoint
    precision: str  # at which it was sampled
    sampling: dict[str, int | float]
    stop_strings: tuple[str, ...]
    stop_tokens: tuple[int, ...]
    judge: str
    questions: int  # number of lines that follow
    sampled: dict[str, Any]  # packages, device, arithmetic and machine


class Line(BaseModel):
    """The responses to one question."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    asked: str  # digest of the prompt and the accepted answers
    responses: tuple[JudgedResponse, ...]
    complete: bool
    generated: Annotated[int, Field(ge=0)]
    naive: Annotated[int, Field(ge=0)]


class ResponseFile(NamedTuple):
    """A file that was read."""

    header: Header
    lines: list[Line]
    digest: str  # BLAKE2b of the uncompressed content, 16 hex digits


def digest_of(p: Prompted) -> str:
    """Return a digest of what the responses to a question and their verdicts depend on."""
    q = p.question
    return digest([q.id, q.question, p.ids, q.aliases, q.distractors])[:8]


def write(path: Path, header: Header, lines: Sequence[Line]) -> None:
    """Write a file; equal contents give equal bytes with one release of zlib."""
    content = "".join(one.model_dump_json() + "\n" for one in (header, *lines)).encode()
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as stream:
        stream.write(content)
    write_whole(path, packed.getvalue())


def read(path: Path) -> ResponseFile:
    """Read a file. Raises HQError if it is missing, damaged, or of another format or version."""
    text = _text(path)
    first, *rest = text.split("\n")
    _require_format(path, first)
    header = _parsed(path, 1, first, Header)
    if not text.endswith("\n") or len(rest) - 1 != header.questions:
        raise HQError(
            f"{path} is truncated: it has {len(rest) - 1:,} of {header.questions:,} questions; "
            "copy it again."
        )
    lines = [_parsed(path, number, line, Line) for number, line in enumerate(rest[:-1], 2)]
    content = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return ResponseFile(header, lines, content)


def _text(path: Path) -> str:
    if not path.is_file():
        raise HQError(f"There is no file of responses {path}: `hq responses export` writes one.")
    try:
        return gzip.decompress(path.read_bytes()).decode()
    except (EOFError, zlib.error) as error:
        raise HQError(f"{path} is truncated or damaged: copy it again.") from error
    except (gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise HQError(
            f"{path} is not a gzip file of JSON lines: give a file of `hq responses export`."
        ) from error


def _require_format(path: Path, first: str) -> None:
    """Raises HQError unless the header is of this format and version."""
    try:
        facts = json.loads(first)
    except json.JSONDecodeError:
        facts = None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise HQError(
            f"{path} does not begin with the header of a file of responses: give a file of "
            "`hq responses export`."
        )
    if facts.get("version") != VERSION:
        raise HQError(
            f"{path} has version {facts.get('version')} of the format, and this hq reads version "
            f"{VERSION}: {_AGAIN}."
        )


def _parsed(path: Path, number: int, line: str, kind: type[_T]) -> _T:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the line"
        raise HQError(
            f"Line {number} of {path} is damaged ({where}: {first['msg']}): copy the file again."
        ) from error
