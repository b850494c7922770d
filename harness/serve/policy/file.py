"""The policy file: actions past the threshold for each domain, and limits of requests, in TOML.

domain = "all"        # domain of requests that name none
alpha = [0.0, 2.0]    # range in which a request may scale the H-Neurons
form = ""             # prompt form of chats; "" for the one that the bundle was validated with
record = "hash"       # prompts and answers in the audit log: hash, text or none

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

from harness.studies.section import checked
from hq.errors import HQError

ActionName = Literal["annotate", "regenerate", "block"]
ScaleFactor = Annotated[float, Field(ge=0, allow_inf_nan=False)]
DEFAULT_BLOCK_MESSAGE = "This answer is withheld: it is likely to be made up."


class Limits(BaseModel):
    """Limits of one request, and of the queue. The defaults suit a small model on a laptop."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    body_bytes: Annotated[int, Field(ge=1024)] = 1 << 18
    """The largest body of a request, in bytes."""
    context: Annotated[int, Field(ge=16)] = 2048
    """The largest number of tokens of a prompt and its answer together."""
    new_tokens: Annotated[int, Field(ge=1)] = 512
    """The largest number of tokens of an answer."""
    queue: Annotated[int, Field(ge=1)] = 16
    """Requests that wait while others are answered; the next ones get status 429."""
    seconds: Annotated[float, Field(gt=0)] = 120.0
    """Seconds from a request's arrival to its answer's end."""
    grace: Annotated[int, Field(ge=0)] = 20
    """Seconds for running answers at shutdown."""


class DomainRule(BaseModel):
    """The action of one domain for answers whose score reaches the threshold."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    action: ActionName = "annotate"
    """`annotate` streams the answer with its score, `regenerate` and `block` withhold it until the
    verdict."""
    alpha: ScaleFactor = 0.5
    """Factor of the H-Neurons when an answer is regenerated."""
    message: Annotated[str, Field(min_length=1)] = DEFAULT_BLOCK_MESSAGE
    """Text in place of a blocked answer."""


class Policy(BaseModel):
    """A policy file; each key has a default. Domains without a rule are annotated."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    domain: str = "all"
    """Domain of requests that name none."""
    alpha: tuple[ScaleFactor, ScaleFactor] = (0.0, 2.0)
    """Range in which a request may scale the H-Neurons."""
    form: str = ""
    """Prompt form of chats; if empty, the one that the bundle was validated with."""
    record: Literal["hash", "text", "none"] = "hash"
    """What the audit log records of prompts and answers."""
    domains: Annotated[dict[str, DomainRule], Field(default_factory=dict)]
    """Rules by domain."""
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _check_alpha_range(self) -> Self:
        low, high = self.alpha
        if not low <= 1 <= high:
            raise ValueError(
                "alpha: write [low, high] with low <= 1 <= high, as 1 leaves the model unchanged"
            )
        return self

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """Read a policy file; None for the default policy.

        Raises HQError if the file is missing, is not valid TOML, or has an unknown key or a wrong
        value.
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

    def require_thresholds(self, bundle_domains: Iterable[str]) -> None:
        """Raise HQError if the policy names a domain for which the bundle has no threshold."""
        known = sorted(bundle_domains)
        for name in (self.domain, *self.domains):
            if name not in known:
                raise HQError(
                    f"The policy names the domain {name!r}, for which the bundle has no threshold: "
                    f"use one of {', '.join(known)}."
                )

    def rule(self, domain: str) -> DomainRule:
        """Return the rule of a domain."""
        return self.domains.get(domain, DomainRule())

    @property
    def digest(self) -> str:
        """SHA-256 of the complete policy, defaults included."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
