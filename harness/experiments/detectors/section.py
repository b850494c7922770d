"""The section [detectors] of a study."""

from typing import Annotated

from pydantic import Field

from harness.studies.section import Section


class DetectorsSection(Section):
    """Settings of the detectors that need more than one pass over the model.

    `responses` are sampled afresh for each question at each precision, with the temperature of the
    study. `verification_tokens` is the largest length of a verification question. `timed` questions
    are answered once more by every detector, to measure its time; 0 measures none.
    """

    responses: Annotated[int, Field(ge=2)] = 10
    verification_tokens: Annotated[int, Field(ge=4)] = 24
    timed: Annotated[int, Field(ge=0)] = 64
