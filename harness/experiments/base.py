"""The base class of experiments, and their registry."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from rich.console import RenderableType

from harness.studies.section import Section
from harness.tables.schema import Row, Tables
from hq.errors import HQError
from hq.registry import Registry
from hq.stats.intervals import Estimate

if TYPE_CHECKING:  # they import torch, and reading a finished run needs no torch
    from harness.stages.materials import Materials
    from harness.store.node import Node
    from harness.store.runner import Outputs
    from harness.studies.study import Study


class Power(NamedTuple):
    """The smallest effects that a run could show, as `hq plan` shows them."""

    sentence: str
    rows: Sequence[Any]  # named tuples, for --json


class Experiment(ABC):
    """One kind of experiment, registered in EXPERIMENTS.

    A run validates everything (`check`), computes the missing nodes, and reads rows from their
    outputs: `rows` and `write` load no model.
    """

    name: ClassVar[str]
    """Name for `hq run --experiment`, and of its section in the file of a study."""
    measures: ClassVar[str]
    """What the experiment measures, in one sentence."""
    tables: ClassVar[Tables]
    """Row type and key columns of each table."""
    section: ClassVar[type[Section] | None] = None
    """Type of its section in the file of a study; None if it has none."""

    committed: ClassVar[tuple[str, ...]] = ()
    """Files that are committed with the tables."""

    def study_name(self, study: "Study") -> str:
        """Return the name of a run, for its folder and provenance."""
        return f"{study.name}-{self.name}"

    def tolerances(self) -> str:
        """Return the text of tolerances.toml for a new folder of committed tables."""
        module = type(self).__module__
        file = files(module.rpartition(".")[0] or module) / "tolerances.toml"
        if not file.is_file():
            raise HQError(
                f"The experiment {self.name!r} has no tolerances.toml beside its module {module}: "
                "add one, or override `tolerances`."
            )
        return file.read_text(encoding="utf-8")

    def check(self, m: "Materials") -> None:  # noqa: B027
        """Validate what this experiment reads from the study. Raises HQError.

        The study's own sections are validated by `Materials.check`.
        """

    @abstractmethod
    def nodes(self, m: "Materials") -> "Sequence[Node]":
        """Declare the nodes to read; the runner adds the nodes that they depend on."""

    @abstractmethod
    def rows(self, m: "Materials", outputs: "Outputs") -> dict[str, list[Row]]:
        """Return the rows of each table."""

    def write(self, folder: Path, m: "Materials", outputs: "Outputs") -> None:  # noqa: B027
        """Write further files into the folder of the tables."""

    def definition(self, study: "Study") -> dict[str, Any]:
        """Return what the definition of a run contains in addition to the study's own sections.

        Paths have no meaning on other machines, so it only contains whether they are given.
        """
        return {}

    def facts(self, m: "Materials", outputs: "Outputs") -> dict[str, Any]:
        """Return what provenance contains in addition to model, definition and nodes."""
        return {}

    def power(self, m: "Materials", outputs: "Outputs") -> Power | None:
        """Return the smallest effects that a run could show, from the finished nodes; or None."""
        return None

    @abstractmethod
    def summary(self, tables: Mapping[str, Sequence[Any]]) -> RenderableType:
        """Return the most important columns, at most 80 characters wide."""


def _instance(name: str, thing: Any) -> Experiment:
    """Return the experiment that an entry point names, itself or by its class.

    Raises HQError if it is not a complete Experiment of that name.
    """
    experiment = thing() if isinstance(thing, type) else thing
    if not isinstance(experiment, Experiment):
        raise HQError(f"{thing!r} is not an Experiment")
    missing = [a for a in ("name", "measures", "tables") if not hasattr(experiment, a)]
    if missing:
        raise HQError(f"{type(experiment).__name__} has no {missing[0]!r}")
    if experiment.name != name:
        raise HQError(f"{type(experiment).__name__} is named {experiment.name!r}")
    return experiment


EXPERIMENTS: Registry[Experiment] = Registry("experiment", "hq.experiments", adopt=_instance)


def estimate_cell(estimate: Estimate, signed: bool = False) -> str:
    """An estimate for a cell of a summary: its value, and its interval on a second line."""
    sign = "+" if signed else ""
    low, high = (f"{end:{sign}.2f}".replace("0.", ".") for end in (estimate.low, estimate.high))
    return f"{estimate.value:{sign}.3f}\n[dim]{low} {high}[/dim]"
