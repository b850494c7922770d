"""The files of the page at `/`, with headers that let it load nothing from elsewhere."""

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_pages(app: Starlette) -> None:
    """`index.html` at the root, and the files beside it.

    As routes: a mount at the root would answer for every path that is known by another method.
    """
    files = StaticFiles(directory=FOLDER)

    async def page(request: Request) -> Response:
        response = await files.get_response(
            request.path_params.get("name", "index.html"), request.scope
        )
        response.headers.update(HEADERS)
        return response

    for path in ("/", "/{name}"):
        app.add_route(path, page)
