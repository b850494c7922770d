"""The section [sweep] of a study."""

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from harness.studies.section import Section

Alpha = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SweepSection(Section):
    """Scenarios, values of α, draws of matched neurons, and costs of a sweep.

    `judge` decides what the responses did: "rules", or a judge that answers prompts, such as "llm".
    `sources` are files of the scenarios that read one, `choices` is a file of questions in MMLU's
    format. `margin` is the largest difference of two slopes that count as equivalent.
    """

    scenarios: tuple[str, ...] = ()  # see `scenarios_of`
    sources: dict[str, str] = Field(default_factory=dict)
    judge: str = "rules"
    alphas: tuple[Alpha, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
    # Values of α for matched draws. Default: the smallest α, 1 and the largest, or all α if 1 is
    # the smallest or the largest.
    control_alphas: Annotated[tuple[Alpha, ...], Field(validate_default=True)] = ()
    trials: Annotated[int, Field(ge=8)] = 400  # per kind of each scenario, or as many as there are
    form: str = ""  # prompt form; if empty, the form of each scenario
    max_new_tokens: Annotated[int, Field(ge=1)] = 24  # the study's, for short answers
    draws: Annotated[int, Field(ge=2)] = 20  # with 19 or more, p can be 0.05
    transfer_draws: Annotated[int, Field(ge=2)] = 100
    margin: Annotated[float, Field(gt=0)] = 0.05  # of the rate, for α from 0 to 1
    questions: Annotated[int, Field(ge=8)] = 100  # for costs; as many choices and texts
    choices: str = ""  # file of choices; if empty, they are generated from facts

    def scenarios_of(self, questions: str) -> tuple[str, ...]:
        """Return the scenarios, given the name of the study's question set.

        By default they are the questions, and the scenarios that build their trials on them.
        """
        return self.scenarios or (questions, "sycophancy", "faitheval")

    @field_validator("control_alphas", mode="before")
    @classmethod
    def _ends_and_one(cls, alphas: object, info: ValidationInfo) -> object:
        if alphas or "alphas" not in info.data:
            return alphas
        swept: tuple[float, ...] = info.data["alphas"]
        ends = {swept[0], 1.0, swept[-1]}
        return tuple(ends) if len(ends) == 3 else swept

    @field_validator("alphas", "control_alphas")
    @classmethod
    def _around_one(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        if 1.0 not in alphas or len(set(alphas)) < 3:
            raise ValueError("give three α or more, 1 among them: effects are relative to α = 1")
        return tuple(sorted(set(alphas)))

    @field_validator("control_alphas")
    @classmethod
    def _among(cls, alphas: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        missing = set(alphas) - set(info.data.get("alphas", alphas))
        if missing:
            raise ValueError(f"{min(missing):g} is not among alphas: add it there")
        return alphas

    @field_validator("scenarios")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(names))
