"""The section [steps] of a study."""

from typing import Annotated

from pydantic import Field

from harness.studies.section import Section


class StepsSection(Section):
    """The answers whose steps are scored."""

    source: str = ""
    """File of given solutions (docs/evidence/steps.md); default: the model answers two-hop
    questions."""
    chains: Annotated[int, Field(ge=20)] = 500
    """Number of two-hop questions."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 16
    """The largest length of the answer of one step, in tokens."""
