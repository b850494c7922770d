"""Requests to an OpenAI-compatible server: overload and lost connections are retried."""

import time
from collections.abc import Callable
from typing import Any, Self

import httpx

from hq.errors import HQError

ATTEMPTS = 5
MAX_WAIT_S = 30.0
_OVERLOAD = frozenset({429, 502, 503, 504})
_SHOWN = 200  # characters of a server's message


class EndpointError(Exception):
    """A request without an answer; `status` is the HTTP status, None if there was no reply."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class Client:
    """Sends JSON to one server.

    Args:
        url: Base URL, for example https://host/v1. A user and password in it are sent, not shown.
        key: API key, sent as a bearer token, in place of a user and password.
        named: What names the URL in messages, such as an option.
        timeout: Seconds to wait for a reply.
        sleep: Waits between attempts, in seconds.

    Raises:
        HQError: If the URL is not an HTTP URL.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        named: str = "--endpoint",
        timeout: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = _parsed(url, named)
        self.host = parts.netloc.decode()
        self.url = str(parts.copy_with(username="", password="", query=None, fragment=None))
        self._base = self.url.rstrip("/") if key else str(parts).rstrip("/")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=timeout
        )
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str) -> httpx.Response:
        """Return the reply to a GET request. Raises EndpointError."""
        return self._sent("GET", path, None, patient=False)

    def post(self, path: str, body: object, patient: bool = True) -> httpx.Response:
        """Return the successful reply to a JSON body. Raises EndpointError.

        Lost connections and the statuses of overload are retried. So are, if `patient`, status 500
        and a body that is not JSON; some servers answer 500 to a field that they do not know.
        """
        return self._sent("POST", path, body, patient)

    def _sent(self, method: str, path: str, body: object, patient: bool) -> httpx.Response:
        failure, wait = EndpointError("no attempt"), 0.0
        for attempt in range(ATTEMPTS):
            if attempt:
                self._sleep(wait)
            wait = min(2.0**attempt, MAX_WAIT_S)
            try:
                reply = self._client.request(method, f"{self._base}{path}", json=body)
            except httpx.RequestError as error:
                failure = EndpointError(f"{type(error).__name__}: {error}")
                continue
            if reply.is_success and (not patient or _is_json(reply)):
                return reply
            if reply.is_success:
                failure = EndpointError("a reply that is not JSON")
                continue
            failure = EndpointError(_reason(reply), reply.status_code)
            if not (reply.status_code in _OVERLOAD or (patient and reply.status_code >= 500)):
                break
            wait = _retry_after(reply) or wait
        raise failure


def _parsed(url: str, named: str) -> httpx.URL:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise HQError(
            f"{named} gives {url!r}, which is not a URL ({error}): set it to https://HOST/v1."
        ) from error
    if parts.scheme not in ("http", "https") or not parts.host:
        raise HQError(
            f"{named} gives {url!r}, which is not an HTTP URL: set it to https://HOST/v1."
        )
    return parts


def _reason(reply: httpx.Response) -> str:
    """The status, with the server's message if it has one."""
    message = _message(reply)
    return f"HTTP {reply.status_code}" + (f": {message[:_SHOWN]}" if message else "")


def _message(reply: httpx.Response) -> str:
    """The message of an error in the formats of OpenAI, vLLM, FastAPI and TGI; empty if none."""
    try:
        content: Any = reply.json()
    except ValueError:
        return ""
    if not isinstance(content, dict):
        return ""
    error = content.get("error") or content.get("message") or content.get("detail") or ""
    if isinstance(error, dict):
        error = error.get("message", "")
    return " ".join(str(error).split())


def _is_json(reply: httpx.Response) -> bool:
    try:
        reply.json()
    except ValueError:
        return False
    return True


def _retry_after(reply: httpx.Response) -> float | None:
    """Seconds that the server asks the client to wait, at most MAX_WAIT_S."""
    seconds = reply.headers.get("Retry-After", "")
    return min(float(seconds), MAX_WAIT_S) if seconds.isdigit() else None
