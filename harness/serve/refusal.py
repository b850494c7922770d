"""What a request is refused with, in the form that OpenAI's clients read."""

from collections.abc import Mapping

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """`param` names the field of the request, `code` is for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """A response that is no answer."""

    error: ErrorDetail


class Refusal(Exception):  # noqa: N818 - an answer too
    """A request that gets an error instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        said = ErrorDetail(message=_sendable(message), type=_type_of(status), code=code)
        said.param = None if param is None else _sendable(param)
        self.body = ErrorBody(error=said)


def _sendable(text: str) -> str:
    """Without halves of characters, which what a client made up may hold."""
    return text.encode(errors="replace").decode()


def _type_of(status: int) -> str:
    """OpenAI's name for the kind of error, which its client makes exceptions of by status."""
    known = {401: "authentication_error", 429: "rate_limit_error"}
    return known.get(status, "invalid_request_error" if status < 500 else "server_error")
