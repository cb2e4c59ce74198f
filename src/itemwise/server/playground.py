"""The page at `/`: rankings, decisions and scores to try in a browser, and the server to watch.

Its files lie in `playground/` as they are sent: HTML, CSS and JavaScript modules, without a build
step. The policy lets the browser load nothing from other hosts and run nothing but these files.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI, Request, Response

FOLDER = Path(__file__).parent / "playground"
PAGE = "index.html"
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Cache-Control": "no-cache",  # ask whether there is a newer one; the tag makes that cheap
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class File(NamedTuple):
    """A file of the page, as it is sent."""

    content: bytes
    media_type: str
    tag: str


@cache
def playground_files() -> dict[str, File]:
    """The page's files by their paths; the page itself is at `/`."""
    files = {}
    for path in sorted(FOLDER.iterdir()):
        content = path.read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        at = "/" if path.name == PAGE else f"/playground/{path.name}"
        files[at] = File(content, _MEDIA_TYPES[path.suffix], tag)
    return files


def add_playground(app: FastAPI, files: dict[str, File]) -> None:
    """Adds a route for each file; nothing else in the folder, or on the disk, can be asked for."""
    for at, file in files.items():
        _add_file(app, at, file)


def _add_file(app: FastAPI, at: str, file: File) -> None:
    headers = {**HEADERS, "ETag": file.tag}

    @app.get(at, include_in_schema=False)
    async def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)
