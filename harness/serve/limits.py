"""How much one request may ask for, and how many may wait."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """The defaults suit a small model on a laptop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_bytes: Annotated[int, Field(ge=1024)] = 1 << 18
    context: Annotated[int, Field(ge=16)] = 2048  # tokens of a prompt and its answer
    new_tokens: Annotated[int, Field(ge=1)] = 512  # of an answer
    queue: Annotated[int, Field(ge=1)] = 16  # requests that wait while one is answered
    seconds: Annotated[float, Field(gt=0)] = 120.0  # from a request's arrival to its answer's end
    grace: Annotated[int, Field(ge=0)] = 20  # seconds for what still runs when the server is ended
