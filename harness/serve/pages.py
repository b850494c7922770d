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

    A route for each file: a mount, or a pattern, would answer for every path that is known by
    another method, or not at all.
    """
    files = StaticFiles(directory=FOLDER)

    async def page(request: Request) -> Response:
        name = request.scope["path"].removeprefix("/") or "index.html"
        response = await files.get_response(name, request.scope)
        response.headers.update(HEADERS)
        return response

    for path in ("/", *(f"/{file.name}" for file in sorted(FOLDER.iterdir()))):
        app.add_route(path, page)
