"""The section [information] of a study."""

from typing import Annotated

from pydantic import Field

from harness.stages.materials import Materials
from harness.studies.section import Section


class InformationSection(Section):
    """The indicator of high activation, and sizes of the null distributions.

    The article does not say above which value activation is high. Here it is a quantile of the
    neuron's CETT over the study's samples at the same precision, which needs no labels; at the
    median, the indicator itself has the most information.
    """

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Quantile of a neuron's CETT above which its activation counts as high."""
    permutations: Annotated[int, Field(ge=100)] = 999
    """Permutations of flipped labels."""
    draws: Annotated[int, Field(ge=20)] = 200
    """Draws of regular neurons."""


def section_of(m: Materials) -> InformationSection:
    """Return the section of a study."""
    values = m.study.sections.get("information", {})
    return InformationSection.of(values, "the section [information]")
