"""The section [conditions] of a study."""

from typing import Annotated

from pydantic import Field

from harness.stages.materials import Materials
from harness.studies.section import Section
from hq.errors import HQError

_GRID = (0.5, 0.55, 0.6, 0.65, 0.7)
Area = Annotated[float, Field(gt=0, lt=1)]


class ConditionsSection(Section):
    """The second scenario, and the thresholds of the definition.

    The article defines `tau` and `tau_cross` without values. The defaults are
    the AUROCs of random neurons in its table of Mistral-7B: 0.617 within the scenario, and 0.523,
    the largest across scenarios.
    """

    other: str = ""
    """A study (a packaged name or a TOML file) whose questions, prompts and sampling make the
    second scenario."""
    tau: Area = 0.617
    """Smallest AUROC of a neuron within the scenario."""
    tau_cross: Area = 0.523
    """Smallest AUROC of a neuron in the second scenario."""
    permutations: Annotated[int, Field(ge=20)] = 200
    """Permutations of flipped labels."""

    @property
    def thresholds(self) -> list[tuple[float, float]]:
        """Pairs of thresholds to count neurons at: those of the section, then a grid."""
        grid = [(tau, tau) for tau in _GRID]
        return list(dict.fromkeys([(self.tau, self.tau_cross), *grid]))


def section_of(m: Materials) -> ConditionsSection:
    """Return the section of a study."""
    return ConditionsSection.of(m.study.sections.get("conditions", {}), "the section [conditions]")


def other_scenario(m: Materials) -> Materials:
    """Return the materials of the second scenario. Raises HQError if the section names none."""
    name = section_of(m).other
    if not name:
        raise HQError(
            "The section [conditions] names no second scenario: set conditions.other to a study "
            "of other questions, as --set conditions.other=smollm2-facts."
        )
    return m.with_questions_of(name)
