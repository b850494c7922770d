"""The application: its routes, its gate, and errors in OpenAI's form."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from harness.serve import about, completions
from harness.serve.gate import Gate, answer
from harness.serve.pages import FOLDER, Pages
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
            service.engine.close()

    app = FastAPI(
        title="hq",
        version=__version__,
        description="A language model, and what its H-Neurons say of its answers.",
        lifespan=lifespan,
        docs_url=None,  # those pages load their scripts from elsewhere
        redoc_url=None,
        max_body_size=service.policy.limits.body_bytes,
    )
    app.add_middleware(Gate, service=service)
    app.include_router(completions.routes(service))
    app.include_router(about.routes(service))
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    if FOLDER.is_dir():
        app.mount("/", Pages())
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


async def _http(_: Request, error: Exception) -> Response:
    """Errors of the framework: no such path or method, a body that is too large."""
    assert isinstance(error, HTTPException)
    refusal = Refusal(error.status_code, str(error.detail), headers=error.headers)
    return answer(refusal)


async def _invalid(_: Request, error: Exception) -> Response:
    """The first thing that is wrong with a request, named by its place."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(part for part in map(str, first["loc"][1:]) if _is_of_request(part))
    unknown = first["type"] == "extra_forbidden"
    return answer(
        Refusal(
            400,
            f"{place} is not supported." if unknown else f"{place or 'The body'}: {first['msg']}.",
            param=place or None,
            code="unsupported_parameter" if unknown else "invalid_value",
        )
    )


def _is_of_request(part: str) -> bool:
    """Pydantic's places name the members of a union too."""
    return part != "str" and "[" not in part
