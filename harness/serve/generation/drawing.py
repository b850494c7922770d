"""How tokens are drawn: a request's sampling settings."""

from dataclasses import dataclass

WINDOW = 64  # tokens that the repeat penalty looks at, as in llama.cpp


@dataclass(frozen=True, slots=True)
class Drawing:
    """Temperature 0 takes the likeliest token; the other defaults change nothing.

    The presence and frequency penalties look at the answer, as OpenAI's do. The repeat penalty
    looks at the last `repeat_last_n` tokens of prompt and answer (-1: all), as llama.cpp's does.
    """

    seed: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = WINDOW
