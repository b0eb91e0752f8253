"""Serves the files of the web page, to whoever asks: there is nothing secret in them, and no state.

All are read once, at the start: a path is looked up among their names, and leads to no other file. What the
page shows it gets from the REST interface, as whoever it has logged in.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from aiohttp import web

ROOT: Final = "/"
FILE: Final = "/web/{name}"
INDEX: Final = "index.html"

TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
"""By the end of a file's name. A file of another type is none of the page's."""

HEADERS: Final = {
    # No script or style in the HTML, nothing from elsewhere; and no text that is taken for HTML.
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _File:
    type: str
    content: bytes
    tag: str


class WebPage:
    def __init__(self) -> None:
        self._files: Mapping[str, _File] = _read()

    def add_to(self, app: web.Application) -> None:
        app.router.add_get(ROOT, self.file)
        app.router.add_get(FILE, self.file)

    def is_for_everybody(self, request: web.Request) -> bool:
        """The request is for one of the page's files, or for a path below theirs."""
        return request.match_info.handler == self.file

    async def file(self, request: web.Request) -> web.Response:
        """Raises web.HTTPNotFound."""
        found = self._files.get(request.match_info.get("name", INDEX))
        if found is None:
            raise web.HTTPNotFound
        headers = {**HEADERS, "ETag": f'"{found.tag}"'}
        if any(tag.value == found.tag for tag in request.if_none_match or ()):
            response = web.Response(status=304, headers=headers)
        else:
            response = web.Response(
                body=found.content, content_type=found.type, charset="utf-8", headers=headers
            )
        # Who has shown nothing stays a stranger, and strangers have no time to keep a connection.
        response.force_close()
        return response


def _read() -> dict[str, _File]:
    found = {}
    for path in files(__package__).joinpath("static").iterdir():
        type = next((type for end, type in TYPES.items() if path.name.endswith(end)), None)
        if type is not None:
            content = path.read_bytes()
            found[path.name] = _File(type, content, hashlib.sha256(content).hexdigest()[:32])
    return found
