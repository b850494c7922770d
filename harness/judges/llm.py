"""The LLM judge: an OpenAI-compatible endpoint with retries and a cache on disk.

Environment variables: HQ_JUDGE_URL (base URL, for example https://host/v1), HQ_JUDGE_MODEL,
HQ_JUDGE_KEY (optional), HQ_JUDGE_CACHE (optional, a JSONL file; default: in the cache folder).
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.endpoints.client import Client, EndpointError
from harness.judges.base import Question, Verdict
from hq.errors import HQError
from hq.storage.places import cache_folder

_INSTRUCTION = """\
You grade answers to questions. Compare the response with the accepted answers; they mean the same
thing, and any of them, or another wording of the same thing, is right.
Reply with exactly one of these three words and nothing else:
RIGHT if the response gives an accepted answer,
WRONG if it gives another answer,
UNCERTAIN if it gives no answer, refuses, or says that it does not know.

Question: {question}
Accepted answers: {answers}
Response: {response}
"""
_AGAIN = "Reply with exactly one word: {words}."
_DECORATION = re.compile(r"[\W_]+")  # quotes, asterisks, a full stop
_VERDICTS = (Verdict.RIGHT, Verdict.WRONG, Verdict.UNCERTAIN)
_SHOWN_ALIASES = 20


class _Message(BaseModel):
    content: str | None  # null if the model refuses


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    choices: list[_Choice]


class _Entry(BaseModel):
    """A line of the cache."""

    model_config = ConfigDict(frozen=True)

    key: str
    verdict: str | None  # a word in lower case; None if neither reply was one of the words


class LLMJudge:
    """Asks a model for verdicts; a request is sent once, then answered from the cache.

    If a reply is not one of the expected words, the model is asked once more; a second such reply
    is unclear, so that an odd reply does not abort a study. An unclear verdict on an answer is
    uncertain.

    Args:
        url: Base URL of the endpoint.
        model: Name of the model.
        key: API key, sent as a bearer token.
        cache: JSONL file of verdicts; None for no cache on disk.
        sleep: Waits between attempts, in seconds.

    Raises:
        HQError: If the URL is not an HTTP URL.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        cache: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._client = Client(url, key, "HQ_JUDGE_URL", sleep=sleep)
        self._model = model
        self._cache = cache
        self._words = _read_cache(cache)
        self._unclear: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    @property
    def identity(self) -> str:
        """Model, host and prompt wording, each of which changes the labels."""
        wording = hashlib.sha256((_INSTRUCTION + _again(_VERDICTS)).encode()).hexdigest()[:16]
        return f"llm {self._model} at {self._client.host}, prompt {wording}"

    @property
    def label(self) -> str:
        """The model's name, for tables."""
        return f"llm:{self._model}"

    @property
    def unclear(self) -> int:
        """Number of distinct requests without a clear reply, cached ones included."""
        return len(self._unclear)

    @classmethod
    def from_environment(cls) -> Self:
        """Return the judge set by the environment. Raises HQError if a variable is missing."""
        missing = [name for name in ("HQ_JUDGE_URL", "HQ_JUDGE_MODEL") if not os.environ.get(name)]
        if missing:
            raise HQError(
                f"The judge 'llm' needs an endpoint: set {' and '.join(missing)} in the "
                "environment."
            )
        cache = os.environ.get("HQ_JUDGE_CACHE")
        return cls(
            url=os.environ["HQ_JUDGE_URL"],
            model=os.environ["HQ_JUDGE_MODEL"],
            key=os.environ.get("HQ_JUDGE_KEY"),
            cache=Path(cache) if cache else cache_folder() / "judge.jsonl",
        )

    def judge(self, response: str, question: Question, truncated: bool) -> Verdict:
        """Return the model's verdict; CUT for a truncated response that is not right.

        Raises HQError if the endpoint cannot be reached or rejects the request.
        """
        if not response.strip():
            return Verdict.UNCERTAIN
        word = self.choose(_prompt(response, question), _VERDICTS)
        verdict = Verdict.UNCERTAIN if word is None else Verdict(word)
        return Verdict.CUT if truncated and verdict is not Verdict.RIGHT else verdict

    def choose(self, prompt: str, words: tuple[str, ...]) -> str | None:
        """Return the word that the model replies with; None if no reply is one of the words.

        Raises HQError if the endpoint cannot be reached or rejects the request.
        """
        key = hashlib.sha256(f"{self._url}\n{self._model}\n{prompt}".encode()).hexdigest()
        if key not in self._words:
            word = self._asked(prompt, words)
            self._words[key] = word
            self._append(_Entry(key=key, verdict=word))
        if self._words[key] is None:
            self._unclear.add(key)
        return self._words[key]

    def _asked(self, prompt: str, words: tuple[str, ...]) -> str | None:
        """The word in the model's first or second reply."""
        messages = [{"role": "user", "content": prompt}]
        reply = self._ask(messages)
        if _parse(reply, words) is None:
            messages.append({"role": "assistant", "content": reply})
            messages.append({"role": "user", "content": _again(words)})
            reply = self._ask(messages)
        return _parse(reply, words)

    def _append(self, entry: _Entry) -> None:
        if self._cache is not None:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            with self._cache.open("a", encoding="utf-8") as lines:
                lines.write(entry.model_dump_json() + "\n")

    def _ask(self, messages: list[dict[str, str]]) -> str:
        """The model's reply; overload, server errors and lost connections are retried."""
        try:
            reply = self._client.post("/chat/completions", self._request(messages))
        except EndpointError as error:
            raise HQError(
                f"The judge at {self._url} gave no answer ({error}): check HQ_JUDGE_URL, "
                "HQ_JUDGE_KEY and HQ_JUDGE_MODEL, or use the judge 'rules'."
            ) from error
        return _content(reply.content, self._url)

    def _request(self, messages: list[dict[str, str]]) -> dict[str, object]:
        return {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": 16}


def _content(reply: bytes, url: str) -> str:
    try:
        completion = _Completion.model_validate_json(reply)
        return completion.choices[0].message.content or ""
    except (ValidationError, IndexError) as error:
        raise HQError(
            f"The judge at {url} does not speak the OpenAI chat format: check HQ_JUDGE_URL."
        ) from error


def _prompt(response: str, question: Question) -> str:
    return _INSTRUCTION.format(
        question=question.question,
        answers="; ".join(question.aliases[:_SHOWN_ALIASES]),
        response=json.dumps(response.strip(), ensure_ascii=False),
    )


def _again(words: tuple[str, ...]) -> str:
    """The second request: "Reply with exactly one word: RIGHT, WRONG or UNCERTAIN."."""
    *first, last = map(str.upper, words)
    return _AGAIN.format(words=f"{', '.join(first)} or {last}")


def _parse(reply: str, words: tuple[str, ...]) -> str | None:
    """The word if the reply is exactly one of them; "not right" is not."""
    plain = _DECORATION.sub(" ", reply).strip().lower()
    return plain if plain in words else None


def _read_cache(path: Path | None) -> dict[str, str | None]:
    """The cached verdicts; a last line that is incomplete after a kill is ended and ignored."""
    if path is None or not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as lines:
            lines.write("\n")
    entries = filter(None, map(_entry, text.splitlines()))
    return {entry.key: entry.verdict for entry in entries}


def _entry(line: str) -> _Entry | None:
    try:
        return _Entry.model_validate_json(line)
    except ValidationError:
        return None
