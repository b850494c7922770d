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
            raise HQError("An exchange needs a token of prompt and one of response: leave it out.")

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and response in one."""
        return self.prompt + self.response
