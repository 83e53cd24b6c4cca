"""A page to chat in: its files and the rules under which a browser runs them."""

from __future__ import annotations

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/client.js": ("client.js", "text/javascript"),
    "/markdown.js": ("markdown.js", "text/javascript"),
}
# The page runs its own scripts and asks this server, nothing else; text never becomes HTML.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def routes() -> list[Route]:
    """The routes of the page's files."""
    return [Route(path, _file) for path in FILES]


async def _file(request: Request) -> Response:
    name, kind = FILES[request.url.path]
    text = resources.files("orthrus_mlx.server").joinpath(name).read_text("utf-8")
    return Response(text, media_type=kind, headers=HEADERS)
