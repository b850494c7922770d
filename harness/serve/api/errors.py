"""Error responses in OpenAI's format."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from harness.serve.generation.engine import EngineUnavailable, QueueFull
from harness.serve.generation.queue import Failure


class ErrorDetail(BaseModel):
    """One error. `param` names the request's field; `code` is for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of an error response."""

    error: ErrorDetail


class APIError(Exception):
    """A request gets an error response instead of an answer."""

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
        self.body = ErrorBody(
            error=ErrorDetail(
                message=_encodable(message),
                type=_error_type(status),
                param=None if param is None else _encodable(param),
                code=code,
            )
        )


# The error responses in the OpenAPI description.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "The request is invalid or not supported.",
        401: "A valid API key is missing.",
        403: "The Host header is not a name of this server.",
        404: "The model or path does not exist.",
        413: "The body is too large.",
        415: "The body is not JSON, or is compressed.",
        429: "The queue is full.",
        499: "The client disconnected.",
        500: "The answer failed.",
        503: "The server is shutting down, or cannot write its audit log.",
        504: "The answer took too long.",
    }.items()
}


def failure_error(failure: Failure) -> APIError:
    """Return the error response for a job without an answer."""
    match failure.reason:
        case "timed out":
            return APIError(504, "The answer took too long.", code="timed_out")
        case "shut down":
            return APIError(503, "The server is shutting down.", code="shut_down")
        case "disconnected":
            return APIError(499, "The client disconnected.", code="disconnected")
        case "error":
            return APIError(500, "The answer failed: the server's log says why.", code="failed")
        case "not recorded":
            return APIError(503, "The audit log cannot be written.", code="unavailable")


def submission_error(error: EngineUnavailable | QueueFull) -> APIError:
    """Return the error response for a request that the engine does not take."""
    if isinstance(error, QueueFull):
        headers = {"Retry-After": str(error.retry_after)}
        return APIError(429, str(error), code="queue_full", headers=headers)
    return APIError(503, str(error), code="unavailable")


def _encodable(text: str) -> str:
    """Replace single surrogates, which text from a client may contain."""
    return text.encode(errors="replace").decode()


def _error_type(status: int) -> str:
    """OpenAI's error type; its client chooses exception classes by status."""
    types = {401: "authentication_error", 429: "rate_limit_error"}
    return types.get(status, "invalid_request_error" if status < 500 else "server_error")
