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

    committed: ClassVar[tuple[str, ...]] = ()
    """Files beside the tables that are committed with them."""

    def study_name(self, study: Study) -> str:
        """The name of a run of a study: of its folder and in its provenance."""
        return f"{study.name}-{self.name}"

    def tolerances(self) -> str:
        """The text of the tolerances.toml that a new folder of committed tables gets."""
        module = type(self).__module__
        file = files(module.rpartition(".")[0] or module) / "tolerances.toml"
        if not file.is_file():
            raise HQError(
                f"The experiment {self.name!r} has no tolerances.toml beside its module {module}: "
                "add one, or override `tolerances`."
            )
        return file.read_text(encoding="utf-8")

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
