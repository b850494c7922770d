"""A prompt and the response to it: the unit that is traced."""

from dataclasses import dataclass

from hq.errors import HQError


@dataclass(frozen=True, slots=True)
class PromptResponse:
    """A prompt and the response to it, as token ids: the unit that is traced at every precision."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.prompt or not self.response:
            raise HQError(
                "A prompt and a response need a token each at least: leave this pair out."
            )

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids of the prompt, then of the response."""
        return self.prompt + self.response
