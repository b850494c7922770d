"""`hq list`: the entries of each registry that packages can extend, and their packages."""

from collections.abc import Callable, Iterator
from enum import StrEnum
from inspect import getdoc
from typing import Annotated, NamedTuple

import typer
from rich.table import Table

from harness.cli.app import AsJson, app, out, print_json


class ListedKind(StrEnum):
    """The registries."""

    PRECISIONS = "precisions"
    SCENARIOS = "scenarios"
    JUDGES = "judges"
    EXPERIMENTS = "experiments"
    FAMILIES = "families"


class Listed(NamedTuple):
    """One entry of a registry."""

    name: str
    about: str
    package: str
    judge: str = ""  # of a scenario: whether its rates are measurable with its rules


@app.command("list")
def list_command(
    kind: Annotated[ListedKind, typer.Argument(help="What to list.")], as_json: AsJson = False
) -> None:
    """List precisions, scenarios, judges, experiments or families, and the package of each.

    Installed packages add to them by the entry-point groups hq.precisions, hq.scenarios, hq.judges,
    hq.experiments and hq.families: see CONTRIBUTING.md.
    """
    entries = sorted(_LISTED[kind]())
    if as_json:
        print_json([{k: v for k, v in entry._asdict().items() if v} for entry in entries])
        return
    columns = ("name", "what it is", "package", "judge")[: 4 if entries[0].judge else 3]
    table = Table(*columns)
    for entry in entries:
        table.add_row(*entry[: len(columns)])
    out.print(table)


def _precisions() -> Iterator[Listed]:
    from hq.precisions import BACKEND_OF
    from hq.precisions.gguf import GGUF_PREFIX, PLUS, SUFFIXES

    for name in BACKEND_OF:
        yield Listed(name, f"run by {BACKEND_OF[name]}", BACKEND_OF.package(name))
    for suffix in SUFFIXES:
        about = f"any GGUF precision, run with {SUFFIXES[suffix].describe()}"
        yield Listed(f"{GGUF_PREFIX}*{PLUS}{suffix}", about, SUFFIXES.package(suffix))


def _scenarios() -> Iterator[Listed]:
    from harness.scenarios import SCENARIOS

    for name in SCENARIOS:
        scenario = SCENARIOS[name]
        kinds = {
            f"{kind}: {scenario.rule_status(kind)}".removeprefix(": "): agreement
            for kind, agreement in scenario.agreement.items()
        }
        judge = "; ".join(f"{status} ({agreement})" for status, agreement in kinds.items())
        package = SCENARIOS.package(name)
        yield Listed(name, scenario.measures, package, judge or scenario.rule_status())


def _judges() -> Iterator[Listed]:
    from harness.judges.registry import JUDGES

    for name in JUDGES:
        yield Listed(name, _first_line(JUDGES[name]), JUDGES.package(name))


def _experiments() -> Iterator[Listed]:
    from harness.experiments import EXPERIMENTS

    for name in EXPERIMENTS:
        yield Listed(name, EXPERIMENTS[name].measures, EXPERIMENTS.package(name))


def _families() -> Iterator[Listed]:
    from hq.models.architectures import RECORDS

    for name in RECORDS:
        written = "traced, written as GGUF" if RECORDS[name].conversion else "traced"
        yield Listed(name, written, RECORDS.package(name))


def _first_line(thing: object) -> str:
    return (getdoc(thing) or "").partition("\n")[0]


_LISTED: dict[ListedKind, Callable[[], Iterator[Listed]]] = {
    ListedKind.PRECISIONS: _precisions,
    ListedKind.SCENARIOS: _scenarios,
    ListedKind.JUDGES: _judges,
    ListedKind.EXPERIMENTS: _experiments,
    ListedKind.FAMILIES: _families,
}
