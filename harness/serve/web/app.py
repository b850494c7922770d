"""The application: routes, page files, and every error in OpenAI's format."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from harness.serve.api.errors import APIError
from harness.serve.api.fields import UNSUPPORTED_FIELD
from harness.serve.web.completion_routes import completion_routes
from harness.serve.web.info_routes import info_routes
from harness.serve.web.middleware import AccessMiddleware, error_response
from harness.serve.web.service import Service
from hq import __version__

PAGE_FOLDER = Path(__file__).parents[1] / "page"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(service: Service) -> FastAPI:
    """Return the application of a service. Its lifespan starts and closes the engine."""

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
        description="A language model, with a hallucination score from its H-Neurons.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from other hosts
        redoc_url=None,
    )
    app.add_middleware(AccessMiddleware, service=service)
    app.include_router(completion_routes(service))
    app.include_router(info_routes(service))
    app.add_exception_handler(APIError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)
    add_page_routes(app, PAGE_FOLDER)
    _remove_422_responses(app)
    return app


def add_page_routes(app: FastAPI, folder: Path) -> None:
    """Serve `index.html` at the root, and the other files of the page beside it.

    Headers forbid the page to load anything from other hosts. Each file has a route of its own: a
    mount or a path pattern would change the status of unknown paths and of other methods.
    """
    files = StaticFiles(directory=folder)

    async def page_file(request: Request) -> Response:
        name = request.scope["path"].removeprefix("/") or "index.html"
        response = await files.get_response(name, request.scope)
        response.headers.update(PAGE_HEADERS)
        return response

    for path in ("/", *(f"/{file.name}" for file in sorted(folder.iterdir()))):
        app.add_route(path, page_file)


def _remove_422_responses(app: FastAPI) -> None:
    """Remove FastAPI's own error from the description: invalid requests get 400, as from OpenAI."""
    schema = app.openapi()
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Errors of the framework: unknown path, wrong method, body too large."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    message = {
        404: f"The path {path} does not exist.",
        405: f"{path} does not support {request.method}: use {(error.headers or {}).get('Allow')}.",
    }.get(error.status_code, str(error.detail))
    return error_response(APIError(error.status_code, message, headers=error.headers))


async def _unexpected_error(_: Request, __: Exception) -> Response:
    """Errors of the server; its log contains the traceback."""
    message = "The request failed: the server's log says why."
    # Uvicorn closes the connection afterwards, and clients have to know.
    return error_response(APIError(500, message, code="failed", headers={"Connection": "close"}))


async def _validation_error(_: Request, error: Exception) -> Response:
    """The first invalid field of a request."""
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    field = errors[0]["loc"][:2]
    # A field with several types has an error for each: the one whose location is longest got
    # furthest, so the client meant that type.
    first = max((e for e in errors if e["loc"][:2] == field), key=lambda e: len(e["loc"]))
    if first["type"] == "json_invalid":
        return error_response(APIError(400, "The body is not valid JSON.", code="invalid_json"))
    unsupported = first["type"] == UNSUPPORTED_FIELD
    param = first.get("ctx", {}).get("field") or _field_path(first["loc"], unsupported)
    reason = first["msg"].removeprefix("Value error, ")
    message = (
        f"{param} is not supported: {reason}."
        if unsupported
        else f"{param or 'The body'}: {reason}."
    )
    code = "unsupported_parameter" if unsupported else "invalid_value"
    return error_response(APIError(400, message, param=param or None, code=code))


def _field_path(location: tuple[int | str, ...], unsupported: bool) -> str:
    """Join a location's field names and list indices with dots.

    The last part is kept for unsupported fields, because unknown fields can have any name.
    """
    *parents, last = map(str, location)
    names = [part for part in parents[1:] if _is_field_name(part)]
    if parents and (unsupported or _is_field_name(last)):
        names.append(last)
    return ".".join(names)


def _is_field_name(part: str) -> bool:
    """Pydantic's locations also contain members of unions: types, and validators in brackets."""
    return part.isdigit() or (part.isidentifier() and part != "str")
