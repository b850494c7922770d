"""Responses of an OpenAI-compatible server as token ids of the checkpoint's tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.endpoints.abilities import Abilities, Choice, Spelling, completion
from harness.endpoints.client import Client, EndpointError
from hq.errors import HQError
from hq.tracing.sampling import StopCriteria

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # in place of an incomplete character


@dataclass(frozen=True, slots=True)
class Response:
    """One response, without its end."""

    ids: tuple[int, ...]
    text: str
    truncated: bool  # reached the limit of tokens before its end
    retokenised: bool  # the ids are the tokenizer's of the text, perhaps not the sampled ones


class Completer:
    """Asks a server for responses to prompts.

    Args:
        client: The server.
        abilities: What it can do.
        spelling: The checkpoint's tokenizer.
        criteria: What ends a response.
        fields: Fields of every request, such as the temperature and the limit of tokens.
    """

    def __init__(
        self,
        client: Client,
        abilities: Abilities,
        spelling: Spelling,
        criteria: StopCriteria,
        fields: Mapping[str, Any],
    ) -> None:
        self._client = client
        self.abilities = abilities
        self._spelling = spelling
        self._criteria = criteria
        self._fields = {"model": abilities.model, **fields, **abilities.fields}

    def can_send(self, prompt: Sequence[int]) -> bool:
        """Whether the server reads the prompt as these tokens.

        A text with control tokens, such as a question with <|im_end|> in it, would be others.
        """
        if self.abilities.prompt == "token ids":
            return True
        return list(self._spelling.encode(self._spelling.decode(prompt))) == list(prompt)

    def responses(self, prompt: Sequence[int], n: int, seed: int) -> list[Response | None]:
        """Return n responses; None for one whose text is not that of its tokens.

        Raises HQError if the server cannot be reached, rejects the request or returns another
        number of responses.
        """
        written = self._spelling.written(prompt, self.abilities.prompt)
        body = {**self._fields, "prompt": written, "seed": seed, "n": n}
        try:
            choices = completion(self._client, body).choices
        except EndpointError as error:
            raise HQError(
                f"The endpoint {self._client.url} did not answer a request of completion "
                f"({error}): finished responses are kept, so the same command continues."
            ) from error
        if len(choices) != n:
            raise HQError(
                f"The endpoint {self._client.url} returned {len(choices)} of {n} responses: "
                "finished responses are kept, so the same command continues."
            )
        return [self.read(choice) for choice in choices]

    def read(self, choice: Choice) -> Response | None:
        """Return a choice as token ids; None if their text is not its text."""
        if choice.finish_reason in ("abort", "error"):
            return None
        if choice.ids is None:
            return self._retokenised(choice)
        ids, cut = tuple(choice.ids), choice.finish_reason == "length"
        if not ids:
            return Response((), "", cut, False) if not choice.text else None
        ended = self._ended(ids)
        response, text = ended or (ids, self._criteria.decode(ids))
        is_same = _alike(text, choice.text)
        return Response(response, text, cut and ended is None, False) if is_same else None

    def _ended(self, ids: tuple[int, ...]) -> tuple[tuple[int, ...], str] | None:
        """The response that ends first, as the local sampler finds it; None if none ends."""
        prefixes = (ids[:length] for length in range(1, len(ids) + 1))
        return next((end for ended in prefixes if (end := self._criteria.split(ended))), None)

    def _retokenised(self, choice: Choice) -> Response | None:
        cuts = [choice.text.find(string) for string in self._criteria.strings]
        ends = [cut for cut in cuts if cut >= 0]
        text = choice.text[: min(ends)] if ends else choice.text
        ids = tuple(self._spelling.encode_response(text)) if text else ()
        decoded = self._criteria.decode(ids)
        is_odd = _REPLACEMENT in text or not self._criteria.tokens.isdisjoint(ids)
        if is_odd or not _alike(decoded, text):
            return None
        cut = choice.finish_reason == "length" and not ends
        return Response(ids, decoded, cut, retokenised=bool(ids))


def _alike(ours: str, theirs: str) -> bool:
    """Whether two texts are equal, but for an incomplete character at the end.

    Tokenizers of SentencePiece omit the space before the first word when they decode.
    """
    ours, theirs = ours.rstrip(_REPLACEMENT), theirs.rstrip(_REPLACEMENT)
    return ours in (theirs, theirs.removeprefix(" "))
