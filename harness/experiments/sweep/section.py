"""The section [sweep] of a study."""

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from harness.studies.section import Section

Alpha = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SweepSection(Section):
    """α-suppression: in which scenarios, how far, and beside how many draws of other neurons.

    `sources` are files of scenarios that read one, `choices` one of questions of MMLU's form.
    `margin` is what two slopes may differ by and count as the same.
    """

    scenarios: tuple[str, ...] = ("falseqa", "faitheval", "sycophancy", "jailbreak")
    sources: dict[str, str] = Field(default_factory=dict)
    alphas: tuple[Alpha, ...] = (0.0, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 3.0)
    # At which matched draws are scaled. Unsaid, they are 1 and the ends, or all if 1 is an end.
    control_alphas: Annotated[tuple[Alpha, ...], Field(validate_default=True)] = ()
    trials: Annotated[int, Field(ge=8)] = 48  # of each kind in a scenario
    form: str = ""  # the prompts' form; each scenario's own where it is empty
    max_new_tokens: Annotated[int, Field(ge=1)] = 24
    draws: Annotated[int, Field(ge=2)] = 5
    transfer_draws: Annotated[int, Field(ge=2)] = 100
    margin: Annotated[float, Field(gt=0)] = 0.05  # of the rate, for α from 0 to 1
    questions: Annotated[int, Field(ge=8)] = 100  # what it costs is read on, as many choices, texts
    choices: str = ""  # a file of choices; without one, they are made of facts

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
            raise ValueError("give three α or more, 1 among them: effects are told from α = 1")
        return tuple(sorted(set(alphas)))

    @field_validator("control_alphas")
    @classmethod
    def _among(cls, alphas: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        lacking = set(alphas) - set(info.data.get("alphas", alphas))
        if lacking:
            raise ValueError(f"{min(lacking):g} is not among alphas, so nothing compares with it")
        return alphas

    @field_validator("scenarios")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("name one scenario or more")
        return tuple(dict.fromkeys(names))
