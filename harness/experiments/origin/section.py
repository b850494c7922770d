"""The section [origin] of a study, and the base model that it names."""

from harness.stages.materials import Materials
from harness.studies.section import Section
from harness.studies.study import PromptSection
from hq.errors import HQError

FORM = "plain"
"""Prompt form in which the base model is asked."""


class OriginSection(Section):
    """The base model of the study's model, which is the tuned one."""

    base: str = ""
    """The checkpoint that the study's model was tuned from: a folder, a hub id, or the name of a
    packaged model."""


def base_model(m: Materials) -> Materials:
    """Return the materials of the base model. Raises HQError if the section names none."""
    section = OriginSection.of(m.study.sections.get("origin", {}), "the section [origin]")
    if not section.base:
        raise HQError(
            "The study does not say which model its own was tuned from: give it as --base MODEL, "
            "or as base in the section [origin]."
        )
    return m.with_model(section.base, "base", PromptSection(form=FORM))
