"""The application: its routes, its gate, and errors in OpenAI's form."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from harness.serve import about, completions
from harness.serve.api.treatment import UNSUPPORTED
from harness.serve.gate import Gate, answer
from harness.serve.pages import add_pages
from harness.serve.refusal import Refusal
from harness.serve.service import Service
from hq import __version__


def application(service: Service) -> FastAPI:
    """The server of one service, whose engine runs as long as it does."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        try:
            yield
        finally:
            await run_in_threadpool(service.engine.close)

    app = FastAPI(
        title="hq",
        version=__version__,
        description="A language model, and what its H-Neurons say of its answers.",
        lifespan=lifespan,
        docs_url=None,  # those pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Gate, service=service)
    app.include_router(completions.routes(service))
    app.include_router(about.routes(service))
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _failed)
    add_pages(app)
    _leave_out_422(app)
    return app


def _leave_out_422(app: FastAPI) -> None:
    """What FastAPI documents of its own: here such a request gets 400, as from OpenAI."""
    schema = app.openapi()
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)


async def _refused(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return answer(refusal)


async def _http(request: Request, error: Exception) -> Response:
    """Errors of the framework: no such path or method, a body that is too large."""
    assert isinstance(error, HTTPException)
    said = {
        404: f"There is nothing at {request.url.path}.",
        405: f"{request.url.path} does not answer {request.method}: "
        f"use {(error.headers or {}).get('Allow')}.",
    }.get(error.status_code, str(error.detail))
    return answer(Refusal(error.status_code, said, headers=error.headers))


async def _failed(_: Request, __: Exception) -> Response:
    """What nobody expected; the server's log has it."""
    said = "The request failed; the server's log says why."
    # Uvicorn closes the connection after that, which a client should know.
    return answer(Refusal(500, said, code="failed", headers={"Connection": "close"}))


async def _invalid(_: Request, error: Exception) -> Response:
    """The first thing that is wrong with a request, named by its place."""
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    field = errors[0]["loc"][:2]
    # Of a field that may be of several types, the type that was meant is the one that got furthest.
    first = max((e for e in errors if e["loc"][:2] == field), key=lambda e: len(e["loc"]))
    if first["type"] == "json_invalid":
        return answer(Refusal(400, "The body is not valid JSON.", code="invalid_json"))
    *parts, last = map(str, first["loc"])
    unknown = first["type"] == UNSUPPORTED
    named = [part for part in parts[1:] if _is_of_request(part)]
    if parts and (unknown or _is_of_request(last)):
        named.append(last)
    place = first.get("ctx", {}).get("field") or ".".join(named)
    message = first["msg"].removeprefix("Value error, ")
    return answer(
        Refusal(
            400,
            f"{place} is not supported: {message}."
            if unknown
            else f"{place or 'The body'}: {message}.",
            param=place or None,
            code="unsupported_parameter" if unknown else "invalid_value",
        )
    )


def _is_of_request(part: str) -> bool:
    """Pydantic's places name the members of a union too: types, and validators in brackets."""
    return part.isdigit() or (part.isidentifier() and part != "str")
