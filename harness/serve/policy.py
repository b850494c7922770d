"""What is done past the threshold, domain by domain, and how far a request may go: one TOML file.

domain = "all"        # of requests that name none
alpha = [0.0, 2.0]    # what a request may scale the H-Neurons by
form = ""             # how a chat is put to the model; as the bundle was validated where empty
record = "hash"       # of prompts and answers in the audit log: hash, text or none

[domains.all]
action = "annotate"   # or: regenerate, block

[domains.medicine]
action = "block"
message = "I am not sure enough to answer that."

[limits]
queue = 16
"""

import hashlib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.serve.limits import Limits
from harness.studies.section import checked
from hq.errors import HQError

ActionName = Literal["annotate", "regenerate", "block"]
Alpha = Annotated[float, Field(ge=0, allow_inf_nan=False)]
DEFAULT_MESSAGE = "This answer is withheld: it is likely to be made up."


class Rule(BaseModel):
    """What is done with an answer of one domain that is past the threshold.

    `alpha` is what the H-Neurons are scaled by when it is written again, `message` what stands in
    the place of a blocked one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: ActionName = "annotate"
    alpha: Alpha = 0.5
    message: Annotated[str, Field(min_length=1)] = DEFAULT_MESSAGE


class Policy(BaseModel):
    """The whole file; every key has a default. A domain without a rule is annotated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: str = "all"
    alpha: tuple[Alpha, Alpha] = (0.0, 2.0)
    form: str = ""
    record: Literal["hash", "text", "none"] = "hash"
    domains: Annotated[dict[str, Rule], Field(default_factory=dict)]
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        least, most = self.alpha
        if not least <= 1 <= most:
            raise ValueError("alpha: give [least, most] around 1, which leaves the model as it is")
        return self

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """The policy in a file, or the default one.

        Raises HQError for a missing file, broken TOML, or a key or value that no policy has.
        """
        if path is None:
            return cls.model_validate({})
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise HQError(f"The policy {path} cannot be read: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise HQError(f"The policy {path} is not valid TOML: {error}.") from error
        return checked(cls, values, f"the policy {path}")

    def require(self, known: Iterable[str]) -> None:
        """Raises HQError for a domain that the bundle has no threshold for."""
        domains = sorted(known)
        for name in (self.domain, *self.domains):
            if name not in domains:
                raise HQError(
                    f"The policy names the domain {name!r}, for which the bundle has no threshold: "
                    f"it has {', '.join(domains)}."
                )

    def rule(self, domain: str) -> Rule:
        """What holds in a domain."""
        return self.domains.get(domain, Rule())

    @property
    def digest(self) -> str:
        """SHA-256 of all that it says, defaults included."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
