"""Request validation: checks requests against model and policy, and encodes their prompts."""

import secrets
from collections.abc import Iterable, Sequence

from harness.serve.api.errors import APIError
from harness.serve.api.messages import Message
from harness.serve.api.prompts import (
    CONVERSATION_ENCODERS,
    FunctionCall,
    Turn,
    encode_conversation,
)
from harness.serve.api.requests import ChatRequest, CompletionRequest, TextRequest
from harness.serve.generation.answer import GenerationRequest
from harness.serve.generation.model import ServedModel
from harness.serve.policy.file import Policy
from hq.errors import HQError
from hq.models.encoding import Encoder
from hq.tracing.sampling import StopCriteria

_MAX_CHARACTERS_PER_TOKEN = 32  # longer texts are rejected before tokenization


class RequestValidator:
    """Converts requests to generation requests. Thread-safe.

    Raises HQError if conversations cannot be encoded in the model's prompt form.
    """

    def __init__(self, model: ServedModel, policy: Policy) -> None:
        CONVERSATION_ENCODERS[model.form]
        self._model, self._policy = model, policy

    def validate_chat(self, request: ChatRequest) -> GenerationRequest:
        """Validate and encode a chat. Raises APIError if the request cannot be answered."""
        self._check_fields(request)
        turns = [_turn(message) for message in request.messages]
        self._check_length(turn.text for turn in turns)
        answer_prefix = request.answer_prefix
        if answer_prefix is not None:
            turns.pop()
        try:
            prompt = encode_conversation(
                self._model.form, self._model.tokenizer, turns, answer_prefix
            )
        except HQError as error:
            raise APIError(400, str(error), param="messages") from error
        trim = self._model.trims and not answer_prefix
        stop = self._model.chat_stop_criteria(request.stop, trim)
        return self._generation_request(request, prompt, stop, trim)

    def validate_text(self, request: TextRequest) -> GenerationRequest:
        """Validate and encode a text to continue. Raises APIError as `validate_chat` does."""
        self._check_fields(request)
        prompt = request.prompt
        if isinstance(prompt, str):
            self._check_length([prompt])
            prompt = Encoder(self._model.tokenizer).text(prompt)
        elif max(prompt) >= self._model.vocabulary:
            raise APIError(
                400,
                f"prompt contains token id {max(prompt)}, but the model's last one is "
                f"{self._model.vocabulary - 1}.",
                param="prompt",
                code="invalid_value",
            )
        if not prompt:
            raise APIError(
                400, "The prompt is empty: send at least one character or token.", param="prompt"
            )
        stop = self._model.text_stop_criteria(request.stop)
        return self._generation_request(request, prompt, stop, trim=False)

    def _check_fields(self, request: CompletionRequest) -> None:
        """Check what does not depend on the prompt."""
        name, extension = self._model.name, request.extension
        if request.model not in (None, name):
            raise APIError(
                404,
                f"The model {request.model!r} is not served here: use {name!r}.",
                param="model",
                code="model_not_found",
            )
        low, high = self._policy.alpha
        if extension.alpha is not None and not low <= extension.alpha <= high:
            raise APIError(
                400,
                f"alpha is {extension.alpha:g}, but the policy allows {low:g} to {high:g}.",
                param="hq.alpha",
                code="alpha_not_allowed",
            )
        if extension.domain is not None and extension.domain not in self._model.bundle.domains:
            known = ", ".join(sorted(self._model.bundle.domains))
            raise APIError(
                400,
                f"The bundle has no domain {extension.domain!r}: use one of {known}.",
                param="hq.domain",
                code="unknown_domain",
            )

    def _check_length(self, texts: Iterable[str]) -> None:
        """Reject texts that cannot fit before they are tokenized."""
        if sum(map(len, texts)) > _MAX_CHARACTERS_PER_TOKEN * self._model.context_tokens:
            raise self._context_error("The prompt does not fit")

    def _context_error(self, fault: str) -> APIError:
        return APIError(
            400,
            f"{fault} into the context of {self._model.context_tokens} tokens: shorten the prompt "
            "or lower max_tokens.",
            code="context_length_exceeded",
        )

    def _generation_request(
        self, request: CompletionRequest, prompt: Sequence[int], stop: StopCriteria, trim: bool
    ) -> GenerationRequest:
        allowed = self._policy.limits.new_tokens
        requested = request.requested_tokens
        if requested is not None and requested > allowed:
            raise APIError(
                400,
                f"{request.max_tokens_field} is {requested}, but the policy allows {allowed}.",
                param=request.max_tokens_field,
                code="max_tokens_not_allowed",
            )
        available = self._model.context_tokens - len(prompt)
        needed = requested or 1
        if available < needed:
            raise self._context_error(
                f"{len(prompt)} prompt tokens and {needed} answer tokens do not fit"
            )
        return GenerationRequest(
            prompt=tuple(prompt),
            stop=stop,
            max_new_tokens=requested or min(allowed, available),
            sampling=request.sampling(default_seed=secrets.randbits(32)),
            alpha=1.0 if request.extension.alpha is None else request.extension.alpha,
            domain=request.extension.domain or self._policy.domain,
            trim=trim,
            grammar=self._grammar(request),
            top_logprobs=request.likely_tokens,
        )

    def _grammar(self, request: CompletionRequest) -> str:
        """The request's JSON schema for the grammar; "" for free text."""
        schema = request.response_format.answer_schema if request.response_format else None
        if schema is None:
            return ""
        try:
            return self._model.grammars.check(schema)
        except HQError as error:
            raise APIError(
                400, str(error), param="response_format", code="invalid_schema"
            ) from error


def _turn(message: Message) -> Turn:
    return Turn(
        role="system" if message.role == "developer" else message.role,
        text=message.text,
        calls=tuple(
            FunctionCall(call.function.name, call.function.arguments, call.id or "")
            for call in message.tool_calls or ()
        ),
        call_id=message.tool_call_id or "",
    )
