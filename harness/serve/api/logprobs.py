"""Log-probabilities of tokens, as OpenAI's two kinds of completion write them."""

from collections.abc import Iterable, Iterator

from pydantic import BaseModel

from harness.serve.generation.odds import Odds


class TopLogprob(BaseModel):
    """A token that could have been chosen; `bytes` need not be whole characters."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that was chosen."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Of the tokens of a message."""

    content: list[TokenLogprob]
    refusal: None = None


class TextLogprobs(BaseModel):
    """Of the tokens of a text, in lists of one length; offsets count characters of the answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


def chat_logprobs(odds: Iterable[Odds]) -> ChatLogprobs:
    """In the form of chats."""
    return ChatLogprobs(
        content=[
            TokenLogprob(**_named(each), top_logprobs=[TopLogprob(**_named(o)) for o in each.top])
            for each in odds
        ]
    )


def text_logprobs(odds: Iterable[Odds], offset: int = 0) -> TextLogprobs:
    """In the form of texts, from a token that begins at `offset`."""
    told = list(odds)
    return TextLogprobs(
        tokens=[each.text for each in told],
        token_logprobs=[each.logprob for each in told],
        top_logprobs=[_by_text(each.top) for each in told],
        text_offset=list(_offsets(told, offset)),
    )


def _by_text(top: Iterable[Odds]) -> dict[str, float]:
    """The likeliest first; of several tokens that read alike only that one."""
    found: dict[str, float] = {}
    for each in top:
        found.setdefault(each.text, each.logprob)
    return found


def _named(odds: Odds) -> dict[str, object]:
    return {"token": odds.text, "logprob": odds.logprob, "bytes": list(odds.piece)}


def _offsets(told: list[Odds], offset: int) -> Iterator[int]:
    for each in told:
        yield offset
        offset += each.letters
