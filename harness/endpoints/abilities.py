"""What an OpenAI-compatible server can do, found out with a few requests before sampling.

Servers accept different fields, and most ignore those that they do not know. So nothing is taken
from a server's name: each ability is tried, and the reply is compared with what it has to be.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.endpoints.client import Client, EndpointError
from hq.errors import HQError

PromptForm = Literal["token ids", "text", "text without BOS"]
Seeds = Literal["repeat responses", "do not repeat responses", "not tried: greedy"]
Ids = Literal["token_ids", "logprobs", "none"]

_FEWER = (8, 4, 2)  # responses per request that are tried if a server does not give all at once
_LONG = 12  # tokens of the responses that have to differ between seeds
_NEUTRAL: Mapping[str, Any] = {"min_p": 0, "repetition_penalty": 1}
"""Settings without effect, since servers have other defaults."""


class Usage(BaseModel):
    """Number of tokens that the server counted."""

    prompt_tokens: int | None = None


class Choice(BaseModel):
    """One response of a completion."""

    model_config = ConfigDict(extra="ignore")

    text: str
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: dict[str, Any] | None = None

    @property
    def logprob_ids(self) -> list[int] | None:
        """The token ids that llama-server returns with log-probabilities; None if there are none.

        Other servers return texts of tokens, of which several tokens can have the same.
        """
        content = (self.logprobs or {}).get("content")
        if not isinstance(content, list) or not content:
            return None
        return _whole([token.get("id") if isinstance(token, dict) else None for token in content])

    @property
    def ids(self) -> list[int] | None:
        """The token ids of the response; None if the reply has none."""
        return self.token_ids if self.token_ids is not None else self.logprob_ids


class Completion(BaseModel):
    """The reply to a completion request."""

    choices: list[Choice]
    usage: Usage | None = None
    system_fingerprint: str | None = None


@dataclass(frozen=True)
class Spelling:
    """The checkpoint's tokenizer: `decode` keeps special tokens, the others add none."""

    decode: Callable[[Sequence[int]], str]
    encode: Callable[[str], Sequence[int]]  # of a prompt
    encode_response: Callable[[str], Sequence[int]]  # of a text that follows a prompt
    bos: tuple[int, ...]  # that it puts before a text

    def written(self, ids: Sequence[int], form: PromptForm) -> str | list[int]:
        """Return a prompt in a form that a request can have."""
        if form == "token ids":
            return list(ids)
        skipped = len(self.bos) if form == "text without BOS" else 0
        return self.decode(ids[skipped:])


class Abilities(BaseModel):
    """What a server can do; it is recorded beside the responses."""

    model_config = ConfigDict(frozen=True)

    url: str  # without user and password
    model: str
    software: str  # header `Server`, and the fingerprint that it states
    listed: dict[str, Any] | None  # the model's entry in /v1/models; None if there is no list
    prompt: PromptForm
    tokenizer: str  # how it was compared with the checkpoint's
    fields: dict[str, Any]  # of each request, beyond those of every completion
    rejected: tuple[str, ...]  # fields that it does not accept
    ids: Ids  # where it returns token ids; "none": texts are tokenized again
    choices: int  # responses per request
    seeds: Seeds


def completion(client: Client, body: Mapping[str, Any], patient: bool = True) -> Completion:
    """Return the reply to a completion request. Raises EndpointError, also if it is malformed."""
    reply = client.post("/v1/completions", body, patient)
    try:
        return Completion.model_validate_json(reply.content)
    except ValidationError as error:
        raise EndpointError(
            f"a reply that is no completion ({error.errors()[0]['msg']})"
        ) from error


def served_model(client: Client, wanted: str) -> tuple[str, dict[str, Any] | None, str]:
    """Return a model's name, its entry in the list of models, and the header `Server`.

    `wanted` is its name; if empty, the only model that is served. Raises HQError if the server
    cannot be reached, has no such model, or has several.
    """
    try:
        reply = client.get("/v1/models")
        content = reply.json()
        entries = [entry for entry in content["data"] if isinstance(entry.get("id"), str)]
    except EndpointError as error:
        if error.status == 404 and wanted:
            return wanted, None, ""
        raise HQError(
            f"The endpoint {client.url} does not list its models ({error}): check --endpoint and, "
            "if it needs a key, OPENAI_API_KEY."
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise HQError(
            f"The endpoint {client.url} does not speak the OpenAI format: give the address at "
            "which /v1/models lists its models."
        ) from error
    by_name = {entry["id"]: entry for entry in entries}
    names = ", ".join(by_name) or "none"
    if wanted and wanted not in by_name:
        raise HQError(f"The endpoint {client.url} does not serve {wanted!r}, but {names}.")
    if not wanted and len(by_name) != 1:
        raise HQError(
            f"The endpoint {client.url} serves {names}: name one with --set endpoint.model=NAME."
        )
    name = wanted or next(iter(by_name))
    entry = {key: value for key, value in by_name[name].items() if key != "created"}
    return name, entry, reply.headers.get("Server", "")


def find_abilities(
    client: Client,
    name: str,
    prompts: Sequence[Sequence[int]],
    spelling: Spelling,
    required: Mapping[str, Any],
    end_tokens: Sequence[int],
    responses: int,
) -> Abilities:
    """Find out what the server can do with these prompts.

    Args:
        client: The server.
        name: The model, as the server calls it; see `served_model`.
        prompts: A few prompts as token ids, on which the tokenizers are compared.
        spelling: The checkpoint's tokenizer.
        required: Fields that the server must accept, such as top_k.
        end_tokens: Tokens that end a response.
        responses: Responses per prompt; with temperature 0 in `required`, one is asked for.

    Raises:
        HQError: If the server cannot be reached, rejects a required field, has another tokenizer,
            or returns the same response for every seed.
    """
    name, listed, software = served_model(client, name)
    try:
        form, tokenizer = _prompt_form(client, name, prompts, spelling)
        prompt = spelling.written(prompts[0], form)
        body = {"model": name, "prompt": prompt, "max_tokens": 2} | dict(required)
        software = " ".join(filter(None, (software, completion(client, body).system_fingerprint)))
        fields, rejected, ids = _fields(client, body, end_tokens)
        seeds, choices = _sampled(client, {**body, **fields}, responses)
    except EndpointError as error:
        raise HQError(
            f"The endpoint {client.url} did not answer a request of completion ({error}): check "
            "the server, and the settings in [sampling]."
        ) from error
    return Abilities(
        url=client.url,
        model=name,
        software=software,
        listed=listed,
        prompt=form,
        tokenizer=tokenizer,
        fields=fields,
        rejected=rejected,
        ids=ids,
        choices=choices,
        seeds=seeds,
    )


def _prompt_form(
    client: Client, name: str, prompts: Sequence[Sequence[int]], spelling: Spelling
) -> tuple[PromptForm, str]:
    """Return the form of prompts that the server reads as their token ids, and how it is known.

    Raises HQError if there is none: the tokenizers differ, or the server changes the prompt.
    """
    _require_tokenizer(client, name, prompts, spelling)
    compared = _tokenize(client, name, "a") is not None
    last: EndpointError | None = None
    counts: list[int | None] = []
    for form in _forms(spelling):
        try:
            counts = [_prompt_tokens(client, name, spelling.written(ids, form)) for ids in prompts]
        except EndpointError as error:
            if error.status is None:
                raise
            last = error
            continue
        if counts == list(map(len, prompts)):
            how = "token ids of /tokenize" if compared else "numbers of prompt tokens"
            return form, how
        if form == "token ids" and compared and set(counts) == {None}:
            return form, "token ids of /tokenize"
    if last is not None and not counts:
        raise last
    if set(counts) <= {None}:
        raise HQError(
            f"The endpoint {client.url} states no number of prompt tokens, so its tokenizer cannot "
            "be compared with the checkpoint's: use a server with usage.prompt_tokens."
        )
    raise HQError(
        f"The endpoint {client.url} reads the study's prompts as {_listed(counts)} tokens, and the "
        f"checkpoint's tokenizer as {_listed(map(len, prompts))}: serve the same model, without a "
        "chat template around the prompts of /v1/completions."
    )


def _forms(spelling: Spelling) -> Iterator[PromptForm]:
    yield "token ids"
    yield "text"
    if spelling.bos:
        yield "text without BOS"


def _listed(counts: Iterable[int | None]) -> str:
    return ", ".join(map(str, counts))


def _prompt_tokens(client: Client, name: str, prompt: str | list[int]) -> int | None:
    body = {"model": name, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    usage = completion(client, body, patient=False).usage
    return None if usage is None else usage.prompt_tokens


def _require_tokenizer(
    client: Client, name: str, prompts: Sequence[Sequence[int]], spelling: Spelling
) -> None:
    """Raises HQError if the server's /tokenize, where there is one, gives other tokens."""
    for ids in prompts:
        text = spelling.decode(ids)
        theirs = _tokenize(client, name, text)
        if theirs is None:
            return
        ours = list(spelling.encode(text))
        if theirs != ours:
            at = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)),
            )
            raise HQError(
                f"The endpoint {client.url} has another tokenizer than the checkpoint: token {at} "
                f"of {text[:40]!r}… is {_at(theirs, at)} there and {_at(ours, at)} here; serve the "
                "same model."
            )


def _at(ids: Sequence[int], index: int) -> str:
    return str(ids[index]) if index < len(ids) else "missing"


def _tokenize(client: Client, name: str, text: str) -> list[int] | None:
    """Return the server's token ids of a text, without BOS; None if it has no such route.

    The body has the fields of vLLM and SGLang, llama-server, and TGI; each ignores the others'.
    """
    body = {
        "model": name,
        **dict.fromkeys(("prompt", "content", "inputs"), text),
        **dict.fromkeys(("add_special_tokens", "add_special"), False),
        "parse_special": True,
    }
    try:
        content = client.post("/tokenize", body, patient=False).json()
    except (EndpointError, ValueError):
        return None
    tokens = content.get("tokens") if isinstance(content, dict) else content
    if not isinstance(tokens, list):
        return None
    return _whole([token.get("id") if isinstance(token, dict) else token for token in tokens])


def _whole(values: Sequence[object]) -> list[int] | None:
    """The values if all are token ids."""
    ids = [value for value in values if isinstance(value, int)]
    return ids if len(ids) == len(values) else None


def _fields(
    client: Client, body: Mapping[str, Any], end_tokens: Sequence[int]
) -> tuple[dict[str, Any], tuple[str, ...], Ids]:
    """Return the optional fields that the server accepts, those that it rejects, and where ids are.

    Log-probabilities are asked for only if they have the token ids.
    """
    optional = {
        "return_token_ids": True,
        "logprobs": 1,
        "stop_token_ids": list(end_tokens),
        **_NEUTRAL,
    }
    accepted = dict(optional)
    if not _accepts(client, {**body, **accepted}):
        accepted = {k: v for k, v in optional.items() if _accepts(client, {**body, k: v})}
    rejected = tuple(key for key in optional if key not in accepted)
    # Without stop strings: a response that ends at once would have no ids.
    choice = _first(completion(client, {**body, **accepted, "stop": None}))
    ids: Ids = "none"
    if choice.token_ids is not None:
        ids = "token_ids"
    elif choice.logprob_ids is not None:
        ids = "logprobs"
    unused = {"logprobs": "logprobs", "return_token_ids": "token_ids"}
    fields = {k: v for k, v in accepted.items() if unused.get(k) in (None, ids)}
    return fields, rejected, ids


def _accepts(client: Client, body: Mapping[str, Any]) -> bool:
    try:
        completion(client, body, patient=False)
    except EndpointError as error:
        if error.status is None:
            raise
        return False
    return True


def _sampled(client: Client, body: Mapping[str, Any], responses: int) -> tuple[Seeds, int]:
    """Return whether seeds repeat responses, and how many responses a request can have.

    Raises HQError if different seeds give the same response at a high temperature: then the n
    responses to a question would always agree.
    """
    if body["temperature"] == 0:
        return "not tried: greedy", 1
    long = {**body, "temperature": 1.5, "top_p": 1.0, "max_tokens": _LONG, "stop": None}
    first, again, other = (
        _first(completion(client, {**long, "seed": seed})).text for seed in (1, 1, 2)
    )
    if first == again == other:
        raise HQError(
            f"The endpoint {client.url} returned the same text for two seeds at temperature 1.5: "
            "it does not sample, so all responses to a question would agree; serve the model "
            "with sampling."
        )
    seeds: Seeds = "repeat responses" if first == again else "do not repeat responses"
    for count in dict.fromkeys((responses, *(n for n in _FEWER if n < responses))):
        if count > 1 and _gives_different(client, {**long, "seed": 3, "n": count}):
            return seeds, count
    return seeds, 1


def _gives_different(client: Client, body: Mapping[str, Any]) -> bool:
    """Whether a request for n responses gives as many, and not one of them n times."""
    try:
        texts = [choice.text for choice in completion(client, body, patient=False).choices]
    except EndpointError as error:
        if error.status is None:
            raise
        return False
    return len(texts) == body["n"] and len(set(texts)) > 1


def _first(reply: Completion) -> Choice:
    if not reply.choices:
        raise EndpointError("a completion without a choice")
    return reply.choices[0]
