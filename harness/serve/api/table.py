"""The tables in docs/server.md, made from the request models themselves.

python -m harness.serve.api.table docs/server.md     # writes them anew
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic.fields import FieldInfo

from harness.serve.api.messages import Message
from harness.serve.api.treatment import Hint, Number, Only
from harness.serve.requests import ChatRequest, TextRequest

_T = TypeVar("_T", Only, Hint, Number)
_PART = re.compile(
    r"(<!-- (\w+): made by harness/serve/api/table\.py -->\n).*?(<!-- end -->)", re.S
)


def tables() -> dict[str, str]:
    """Markdown, by the name of its place in the page."""
    both = TextRequest.model_fields | ChatRequest.model_fields
    return {
        "supported": "\n".join(_supported(both)),
        "neutral": "\n".join(_neutral(both)),
        "ignored": ", ".join(f"`{name}`" for name in _named(both, Hint)),
        "messages": "\n".join(_messages()),
    }


def written(page: str) -> str:
    """The page with its tables made anew."""
    made = tables()
    return _PART.sub(lambda found: f"{found[1]}\n{made[found[2]]}\n\n{found[3]}", page)


def _supported(fields: dict[str, FieldInfo]) -> Iterator[str]:
    yield "| field | where | what |"
    yield "| --- | --- | --- |"
    for name, field in sorted(fields.items()):
        if _of(field, Only) or _of(field, Hint):
            continue
        wheres = [
            where
            for where, model in (("chat", ChatRequest), ("completions", TextRequest))
            if name in model.model_fields
        ]
        yield f"| `{name}` | {', '.join(wheres)} | {_what(name, field)} |"


def _what(name: str, field: FieldInfo) -> str:
    number = _of(field, Number)
    if name == "logprobs":  # of two kinds
        return (
            "chat: whether log-probabilities are told; completions: how many likely tokens are "
            f"told beside each one, {_number(TextRequest.model_fields[name])}"
        )
    if number is None:
        return field.description or ""
    return f"{number.says}; {number.range}"


def _number(field: FieldInfo) -> str:
    number = _of(field, Number)
    return number.range if number else ""


def _neutral(fields: dict[str, FieldInfo]) -> Iterator[str]:
    yield "| field | accepted | otherwise |"
    yield "| --- | --- | --- |"
    for name in _named(fields, Only):
        yield _neutral_row(name, fields[name])


def _neutral_row(name: str, field: FieldInfo) -> str:
    only = _of(field, Only)
    assert only is not None
    values = ", ".join(f"`{json.dumps(value)}`" for value in (*only.neutral, None))
    return f"| `{name}` | {values} | {only.says} |"


def _messages() -> Iterator[str]:
    fields = Message.model_fields
    yield "| field | accepted | otherwise |"
    yield "| --- | --- | --- |"
    for name in _named(fields, Only):
        yield _neutral_row(name, fields[name])
    names = ", ".join(f"`{name}`" for name in _named(fields, Hint))
    yield ""
    yield f"Ignored, and listed in `hq.ignored`: {names}."


def _named(fields: dict[str, FieldInfo], kind: type[_T]) -> list[str]:
    return sorted(name for name, field in fields.items() if _of(field, kind))


def _of(field: FieldInfo, kind: type[_T]) -> _T | None:
    return next((each for each in field.metadata if isinstance(each, kind)), None)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
