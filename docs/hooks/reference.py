"""Generates the reference pages: each comment `<!-- generated: NAME -->` becomes its text."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_COMMENT = re.compile(r"<!-- generated: (\w+) -->")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the comments of a page."""
    return _COMMENT.sub(lambda found: PAGES[found[1]](), markdown)


def commands() -> str:
    """Return every command with its arguments and options."""
    from harness.cli import app

    return "\n\n".join(_command("hq", typer.main.get_command(app)))


def _command(name: str, command: Any) -> Iterator[str]:
    if hasattr(command, "commands"):
        if name != "hq":
            yield f"## {name}\n\n{_text(command.help)}"
        for part in sorted(command.commands):
            yield from _command(f"{name} {part}", command.commands[part])
        return
    context = command.make_context(name, [], resilient_parsing=True)
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option"]
    needed = [_names(p)[0] if p.required else f"[{_names(p)[0]}]" for p in arguments]
    usage = " ".join([name, *needed, "[OPTIONS]"])
    level = "##" if name.count(" ") == 1 else "###"
    yield f"{level} {name}\n\n```text\n{usage}\n```\n\n{_text(command.help)}"
    for title, params in (("argument", arguments), ("option", options)):
        if params:
            rows = [_parameter(p, context) for p in params]
            yield _table((title, "value", "default", "description"), rows)


def _parameter(param: Any, context: Any) -> tuple[str, ...]:
    is_argument = param.param_type_name == "argument"
    names = _names(param) if is_argument else [*param.opts, *param.secondary_opts]
    is_flag = getattr(param, "is_flag", False)
    default = param.default
    if param.required:
        shown = "required"
    elif is_flag or default in (None, (), "") or callable(default):
        shown = ""  # the description says what happens then
    else:
        shown = _code(str(getattr(default, "value", default)))
    value = "" if is_flag else _code(_value(param, context))
    return ", ".join(map(_code, names)), value, shown, _text(param.help)


def _names(argument: Any) -> list[str]:
    return [(argument.metavar or argument.name).upper()]


def _value(param: Any, context: Any) -> str:
    """Return the type of a value and its limits."""
    limits = [
        f" {sign} {limit}"
        for sign, limit in (("≥", param.min), ("≤", param.max))
        if limit is not None
    ]
    name = param.display_type(context).strip("<>").split(" range")[0].replace("|", " or ")
    if name.startswith("list["):
        return f"{_TOML_TYPES.get(name[5:-1], name[5:-1])}, repeatable"
    return "".join([_TOML_TYPES.get(name, name), *limits])


def study() -> str:
    """Return the keys of a study's file, and of the sections of experiments."""
    from harness.experiments import EXPERIMENTS
    from harness.studies.study import Study

    parts = ["## Top level", _keys(Study, skip=("sections",))]
    for name, field in Study.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            parts += _section(name, kind)
    parts.append(
        "## Sections of experiments\n\nA study may have the section of any experiment; only "
        "`hq run -e NAME` reads it."
    )
    for name in EXPERIMENTS:
        section = EXPERIMENTS[name].section
        if section is not None:
            parts += _section(name, section, level="###")
    return "\n\n".join(parts)


def policy() -> str:
    """Return the keys of a policy file."""
    from harness.serve.policy.file import DomainRule, Limits, Policy

    parts = ["## Top level", _keys(Policy, skip=("domains",))]
    parts += _section("domains.NAME", DomainRule) + _section("limits", Limits)
    return "\n\n".join(parts)


def _section(name: str, kind: type[BaseModel], level: str = "##") -> list[str]:
    return [f"{level} [{name}]", _text(kind.__doc__ or ""), _keys(kind)]


def _keys(kind: type[BaseModel], skip: Sequence[str] = ()) -> str:
    rows = [
        (_code(name), _code(_type(field)), _code(_toml(_default(field))), _text(field.description))
        for name, field in kind.model_fields.items()
        if name not in skip and not _is_section(field)
    ]
    return _table(("key", "type", "default", "description"), rows)


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _default(field: FieldInfo) -> object:
    value = field.get_default(call_default_factory=True)
    return "" if value is PydanticUndefined else value


def _toml(value: object) -> str:
    """Return a default as TOML writes it; nothing where a key has none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value)


_TOML_TYPES = {"str": "text", "int": "integer", "float": "number", "bool": "boolean"}


def _type(field: FieldInfo) -> str:
    text = _type_name(field.annotation)
    limits = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    for constraint in field.metadata:
        for name, sign in limits.items():
            if getattr(constraint, name, None) is not None:
                text += f" {sign} {getattr(constraint, name)}"
    return text


def _type_name(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if hasattr(kind, "__metadata__"):
        return _type_name(arguments[0])
    name = getattr(origin, "__name__", str(origin))
    if name == "Literal":
        return " or ".join(map(_toml, arguments))
    if origin is tuple:
        inner = [_type_name(a) for a in arguments if a is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in arguments else "[" + ", ".join(inner) + "]"
    if origin is dict:
        return f"table of {_type_name(arguments[1])}"
    if origin is Union or name == "UnionType":
        return " or ".join(_type_name(a) for a in arguments if a is not type(None))
    text = getattr(kind, "__name__", str(kind))
    return _TOML_TYPES.get(text, text)


def columns() -> str:
    """Return the columns of every table of every experiment."""
    from harness.experiments import EXPERIMENTS

    parts: list[str] = []
    for name in EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        parts.append(f"## {name}\n\nMeasures {experiment.measures}.")
        for table, (kind, keys) in experiment.tables.items():
            rows = [
                (_code(column), _column_type(field), _text(field.description))
                for column, field in kind.model_fields.items()
            ]
            one_per = f"One row per {', '.join(map(_code, keys))}. " if keys else "One row. "
            about = one_per + _text(kind.__doc__ or "")
            parts += [
                f"### {name}: {table}",
                about,
                _table(("column", "type", "description"), rows),
            ]
    return "\n\n".join(parts)


def _column_type(field: FieldInfo) -> str:
    from hq.stats.intervals import Estimate

    options = {field.annotation, *get_args(field.annotation)}
    return "estimate" if Estimate in options else _type_name(field.annotation)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _text(text: str | None) -> str:
    """Return a docstring or help text as Markdown: no markup of the terminal, no indentation."""
    lines = [line.strip() for line in (text or "").replace("\b", "").splitlines()]
    return re.sub(r"\[/?bold\]", "", "\n".join(lines)).strip()


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header)]
    lines += [[_cell(text) for text in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Return text in one line, with `|` escaped outside of code."""
    parts = text.replace("\n", " ").split("`")
    parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
    return "`".join(parts)


PAGES: Mapping[str, Callable[[], str]] = {
    function.__name__: function for function in (commands, study, policy, columns)
}
