"""What a request is turned into before it may wait for the model."""

import secrets
from collections.abc import Iterable, Sequence

from harness.serve.api.messages import Message
from harness.serve.conversation import Call, Turn, encode
from harness.serve.draft import Order
from harness.serve.model import ServedModel
from harness.serve.policy import Policy
from harness.serve.refusal import Refusal
from harness.serve.requests import Asked, ChatRequest, TextRequest
from hq.errors import HQError
from hq.models.encoding import Encoder
from hq.tracing.sampling import StopCriteria

_LETTERS_A_TOKEN = 32  # a text with more than that on average cannot be told to fit


class Desk:
    """Checks requests against model, policy and limits, and encodes them. Any thread may use it."""

    def __init__(self, model: ServedModel, policy: Policy) -> None:
        self._model, self._policy = model, policy

    def chat(self, asked: ChatRequest) -> Order:
        """Of a conversation. Raises Refusal for what cannot be had."""
        self._require(asked)
        turns = [_turn(said) for said in asked.messages]
        self._require_short(turn.text for turn in turns)
        begun = asked.begun
        if begun is not None:
            turns.pop()
        try:
            prompt = encode(self._model.form, self._model.tokenizer, turns, begun)
        except HQError as error:
            raise Refusal(400, str(error), param="messages") from error
        trim = self._model.trims and not begun
        return self._order(asked, prompt, self._model.chat_ending(asked.stop, trim), trim)

    def text(self, asked: TextRequest) -> Order:
        """Of a text that is gone on with. Raises Refusal for what cannot be had."""
        self._require(asked)
        prompt = asked.prompt
        if isinstance(prompt, str):
            self._require_short([prompt])
            prompt = Encoder(self._model.tokenizer).text(prompt)
        elif max(prompt) >= self._model.vocabulary:
            raise Refusal(
                400,
                f"prompt has the token {max(prompt)}, and the model's last one is "
                f"{self._model.vocabulary - 1}.",
                param="prompt",
                code="invalid_value",
            )
        if not prompt:
            raise Refusal(
                400, "The prompt is empty: there is nothing to go on with.", param="prompt"
            )
        return self._order(asked, prompt, self._model.text_ending(asked.stop), trim=False)

    def _require(self, asked: Asked) -> None:
        """What can be said before the text is looked at."""
        name, extension = self._model.name, asked.extension
        if asked.model not in (None, name):
            raise Refusal(
                404,
                f"The model {asked.model!r} is not served here: {name!r} is.",
                param="model",
                code="model_not_found",
            )
        least, most = self._policy.alpha
        if extension.alpha is not None and not least <= extension.alpha <= most:
            raise Refusal(
                400,
                f"alpha is {extension.alpha:g}, and the policy allows {least:g} to {most:g}.",
                param="hq.alpha",
                code="alpha_not_allowed",
            )
        if extension.domain is not None and extension.domain not in self._model.bundle.domains:
            known = ", ".join(sorted(self._model.bundle.domains))
            raise Refusal(
                400,
                f"There is no domain {extension.domain!r}: the bundle has {known}.",
                param="hq.domain",
                code="unknown_domain",
            )

    def _require_short(self, texts: Iterable[str]) -> None:
        """A text that cannot fit is not even tokenized."""
        if sum(map(len, texts)) > _LETTERS_A_TOKEN * self._model.tokens:
            raise self._too_long()

    def _too_long(self, prompt: int | None = None, answer: int = 1) -> Refusal:
        asked = "The prompt" if prompt is None else f"{prompt} tokens and {answer} new ones"
        return Refusal(
            400,
            f"{asked} do not fit into the context of {self._model.tokens} tokens: shorten them.",
            code="context_length_exceeded",
        )

    def _order(
        self, asked: Asked, prompt: Sequence[int], ending: StopCriteria, trim: bool
    ) -> Order:
        most = self._policy.limits.new_tokens
        wanted = asked.wanted_tokens
        if wanted is not None and wanted > most:
            raise Refusal(
                400,
                f"{asked.tokens_field} is {wanted}, and the policy allows {most}.",
                param=asked.tokens_field,
                code="max_tokens_not_allowed",
            )
        room = self._model.tokens - len(prompt)
        if room < (wanted or 1):
            raise self._too_long(len(prompt), wanted or 1)
        return Order(
            prompt=tuple(prompt),
            ending=ending,
            max_new_tokens=wanted or min(most, room),
            drawing=asked.drawing(seed=secrets.randbits(32)),
            alpha=1.0 if asked.extension.alpha is None else asked.extension.alpha,
            domain=asked.extension.domain or self._policy.domain,
            trim=trim,
            grammar=self._grammar(asked),
            likely=asked.likely,
        )

    def _grammar(self, asked: Asked) -> str:
        """The JSON schema that was asked for, checked; "" for text."""
        schema = asked.response_format.schema_asked if asked.response_format else None
        if schema is None:
            return ""
        try:
            return self._model.grammars.check(schema)
        except HQError as error:
            raise Refusal(
                400, str(error), param="response_format", code="invalid_schema"
            ) from error


def _turn(said: Message) -> Turn:
    return Turn(
        role="system" if said.role == "developer" else said.role,
        text=said.text,
        calls=tuple(
            Call(call.function.name, call.function.arguments, call.id or "")
            for call in said.tool_calls or ()
        ),
        call_id=said.tool_call_id or "",
    )
