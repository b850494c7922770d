"""Files of given solutions in steps, in the format of ProcessBench."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from harness.experiments.steps.answers import ALL_RIGHT
from hq.errors import HQError

Text = Annotated[str, Field(pattern=r"\S")]


class Problem(BaseModel):
    """A line of a file: a problem, a solution in steps, and where the solution first errs.

    Other keys, such as those that ProcessBench has, are ignored.
    """

    id: Text
    problem: Text
    steps: Annotated[tuple[Text, ...], Field(min_length=1)]
    label: Annotated[int, Field(ge=ALL_RIGHT)]  # index of the first wrong step from 0, or -1

    @model_validator(mode="after")
    def _within(self) -> "Problem":
        if self.label >= len(self.steps):
            raise ValueError(
                f"the label {self.label} is not the index of one of {len(self.steps)} steps"
            )
        return self


def read_problems(path: Path) -> list[Problem]:
    """Read a file with one JSON object per line.

    Raises HQError, naming the line and the key, if a line is not a problem, if an id occurs twice,
    or if no solution has a wrong step.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HQError(f"The file of steps.source, {path}, cannot be read: {error}.") from error
    problems: dict[str, Problem] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        problem = _parse(f"{path} line {number}", line)
        if problem.id in problems:
            raise HQError(f"{path} line {number}: the id {problem.id!r} occurs twice: keep one.")
        problems[problem.id] = problem
    if not any(problem.label != ALL_RIGHT for problem in problems.values()):
        raise HQError(
            f"{path} has {len(problems)} solutions and none with a wrong step (label 0 or more): "
            "the first wrong step is located in such solutions, so add some."
        )
    return list(problems.values())


def _parse(where: str, line: str) -> Problem:
    try:
        values: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise HQError(f"{where} is not JSON ({error.msg}): write one object per line.") from error
    try:
        return Problem.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the line"
        empty = first["type"] in ("string_pattern_mismatch", "too_short")
        message = "is empty" if empty else first["msg"].removeprefix("Value error, ")
        raise HQError(
            f"{where}, {key}: {message}; a line has id, problem, steps (a list of texts) and label "
            "(the index of the first wrong step from 0, or -1)."
        ) from error
