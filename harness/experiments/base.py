"""What an experiment is: a kind of study, with its nodes, tables and summary."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from rich.console import RenderableType

from harness.stages.materials import Materials
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.section import Section
from harness.studies.study import Study
from harness.tables.schema import Row, Tables
from hq.errors import HQError
from hq.registry import Registry


class Experiment(ABC):
    """One kind of experiment. Subclasses are registered in EXPERIMENTS, one folder each.

    A run validates everything (`check`), computes the nodes that are missing, and then reads rows
    from their outputs: `rows` and `write` load no model.
    """

    name: ClassVar[str]
    """The name for `hq run --experiment`, and of its section in a study's file."""
    measures: ClassVar[str]
    """What it measures, in one sentence."""
    tables: ClassVar[Tables]
    """Table name: row type, and the columns that tell rows apart."""
    section: ClassVar[type[Section] | None] = None
    """The section of a study's file that it reads."""

    def study_name(self, study: Study) -> str:
        """The name of a run of a study: of its folder and in its provenance."""
        return f"{study.name}-{self.name}"

    def tolerances(self) -> str:
        """The text of the tolerances.toml that a new folder of committed tables gets."""
        package = type(self).__module__.rpartition(".")[0]
        return (files(package) / "tolerances.toml").read_text(encoding="utf-8")

    def check(self, m: Materials) -> None:  # noqa: B027
        """Validates what this experiment reads of the study. Raises HQError.

        The materials themselves are validated before.
        """

    @abstractmethod
    def nodes(self, m: Materials) -> Sequence[Node]:
        """What has to be computed; inputs of these nodes are found by themselves."""

    @abstractmethod
    def rows(self, m: Materials, outputs: Outputs) -> dict[str, list[Row]]:
        """The rows of each table."""

    def write(self, folder: Path, m: Materials, outputs: Outputs) -> None:  # noqa: B027
        """Writes files beside the tables, if there are any."""

    def definition(self, study: Study) -> dict[str, Any]:
        """What the definition of a run has beside the study's own sections.

        Of paths, which mean nothing to others, it says only that there are some.
        """
        return {}

    def facts(self, m: Materials, outputs: Outputs) -> dict[str, Any]:
        """What provenance has beside model, definition and nodes."""
        return {}

    @abstractmethod
    def summary(self, tables: Mapping[str, Sequence[Any]]) -> RenderableType:
        """The columns that answer the question, at most 80 characters wide."""


def _instance(name: str, thing: Any) -> Experiment:
    """An experiment, or the class of one. Raises HQError for another name or type."""
    experiment = thing() if isinstance(thing, type) else thing
    if not isinstance(experiment, Experiment) or experiment.name != name:
        raise HQError(f"The entry point {name!r} is no Experiment of that name: correct it.")
    return experiment


EXPERIMENTS: Registry[Experiment] = Registry("experiment", "hq.experiments", adopt=_instance)
