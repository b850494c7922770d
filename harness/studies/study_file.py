"""A study as the text of its TOML file, with every key and what it does.

The comments are the docstrings of the sections and of their fields.
"""

import json
import re
from collections.abc import Iterator, Mapping
from inspect import cleandoc
from textwrap import wrap
from typing import get_args

from pydantic.fields import FieldInfo

from harness.studies.section import Section
from harness.studies.study import Study

_WIDTH = 100
_BARE_KEY = re.compile("[A-Za-z0-9_-]+")
_HEADER = (
    "A study of hq: every key that it can have. A key with # in front has its default; remove the "
    "# to set it."
)


def study_text(study: Study) -> str:
    """Return the TOML file of a study.

    Keys that were set have their values, and all others are commented out, with their defaults.
    Loading the text gives an equal study.
    """
    blocks = [_comment(_HEADER), *_keys(study)]
    for name, field in Study.model_fields.items():
        value = getattr(study, name)
        if isinstance(value, Section):
            title = f"{_comment(cleandoc(type(value).__doc__ or ''))}\n[{name}]"
            blocks.append("\n".join([title, *_keys(value)]))
        elif name == "sections":
            blocks += [_table(section, values) for section, values in value.items()]
        elif isinstance(value, Mapping):
            blocks.append(f"{_comment(field.description or '')}\n{_table(name, value)}")
    return "\n\n".join(blocks) + "\n"


def _keys(section: Section) -> Iterator[str]:
    """Each key of a section with its comment; tables within the study are not keys."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(section, Study) and isinstance(value, Section | Mapping):
            continue
        mark = "" if name in section.model_fields_set else "#"
        shown = _example(field) if value is None else value
        yield f"{_comment(field.description or '')}\n{mark}{name} = {_toml(shown)}"


def _example(field: FieldInfo) -> object:
    """A value that a key without a default can have: the first of its choices."""
    choices = next(option for option in get_args(field.annotation) if option is not type(None))
    return get_args(choices)[0]


def _table(name: str, values: Mapping[str, object]) -> str:
    return "\n".join([f"[{name}]", *(f"{_key(k)} = {_toml(v)}" for k, v in values.items())])


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _toml(name)


def _toml(value: object) -> str:
    """A value as TOML: JSON is TOML for text, numbers, booleans and arrays of them."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    return "\n".join(
        wrap(" ".join(text.split()), _WIDTH, initial_indent="# ", subsequent_indent="# ")
    )
