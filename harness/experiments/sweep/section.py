"""The section [sweep] of a study."""

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from harness.studies.section import Section

Alpha = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SweepSection(Section):
    """Scenarios, values of α, draws of matched neurons, and costs of a sweep."""

    scenarios: tuple[str, ...] = ()
    """Scenarios; default: the study's questions, `sycophancy` and `faitheval`."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Files of the scenarios that read one, by scenario."""
    judge: str = "rules"
    """What decides what a response did: `rules`, or a judge that answers prompts, such as `llm`."""
    alphas: tuple[Alpha, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
    """Values of α, 1 among them."""
    control_alphas: Annotated[tuple[Alpha, ...], Field(validate_default=True)] = ()
    """Values of α for matched draws; default: the smallest α, 1 and the largest, or all α if 1 is
    the smallest or the largest."""
    trials: Annotated[int, Field(ge=8)] = 400
    """Trials per kind of each scenario, or as many as there are."""
    form: str = ""
    """Prompt form; default: the form of each scenario."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 24
    """The largest length of a response, in tokens; for short answers, that of the study."""
    draws: Annotated[int, Field(ge=2)] = 20
    """Draws of matched neurons; with 19 or more, p can be 0.05."""
    transfer_draws: Annotated[int, Field(ge=2)] = 100
    """Draws of matched probes for the table `transfer`."""
    margin: Annotated[float, Field(gt=0)] = 0.05
    """The largest difference of two slopes that count as equivalent: change of the rate per unit of
    α."""
    questions: Annotated[int, Field(ge=8)] = 100
    """Questions for costs, and as many choices and texts."""
    choices: str = ""
    """File of choices in MMLU's format, for costs; default: generated from facts."""

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
