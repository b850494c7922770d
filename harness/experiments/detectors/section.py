"""The section [detectors] of a study."""

from typing import Annotated

from pydantic import Field

from harness.studies.section import Section


class DetectorsSection(Section):
    """Settings of the detectors that need more than one pass over the model."""

    responses: Annotated[int, Field(ge=2)] = 10
    """Responses sampled for each question at each precision, with the temperature of the study."""
    verification_tokens: Annotated[int, Field(ge=4)] = 24
    """The largest length of a verification question, in tokens."""
    timed: Annotated[int, Field(ge=0)] = 64
    """Questions that every detector answers once more, to measure its time; 0 measures none."""
