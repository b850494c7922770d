"""The section [steps] of a study."""

from typing import Annotated

from pydantic import Field

from harness.studies.section import Section


class StepsSection(Section):
    """The answers whose steps are scored.

    `source` is a file of given solutions (docs/evidence/steps.md describes it); if it is empty, the
    model answers `chains` two-hop questions. `max_new_tokens` limits the answer of one step.
    """

    source: str = ""
    chains: Annotated[int, Field(ge=20)] = 500
    max_new_tokens: Annotated[int, Field(ge=1)] = 16
