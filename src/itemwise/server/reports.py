"""Reports of `itemwise validate`, for those who may use the server."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fastapi import FastAPI, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

PAGE = "index.html"
MAX_LISTED = 100
# A page of a report has its style and pictures in itself, and no scripts.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_FILE = re.compile(r"[\w.-]+\.(html|json|md)")
_MEDIA_TYPES = {".html": "text/html", ".json": "application/json", ".md": "text/plain"}


def report_names(folder: str | None) -> list[str]:
    """The reports in a folder, by name; none if there is no such folder."""
    if folder is None:
        return []
    try:
        with os.scandir(Path(folder).expanduser()) as found:
            names = [each.name for each in found if each.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    root = Path(folder).expanduser()
    return sorted(name for name in names if (root / name / PAGE).is_file())[:MAX_LISTED]


def add_reports(app: FastAPI, folder: str | None) -> None:
    """Adds the files of the reports that `report_names` lists; no others can be asked for."""

    @app.get("/reports/{name}/", include_in_schema=False)
    @app.get("/reports/{name}/{file}", include_in_schema=False)
    async def report(name: str, file: str = PAGE) -> Response:
        content = await run_in_threadpool(_read, folder, name, file)
        if content is None:
            raise HTTPException(404, "there is no such report")
        kind = _MEDIA_TYPES[Path(file).suffix]
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=HEADERS)


def _read(folder: str | None, name: str, file: str) -> bytes | None:
    if folder is None or name not in report_names(folder) or not _FILE.fullmatch(file):
        return None
    path = Path(folder).expanduser() / name / file
    return path.read_bytes() if path.is_file() and not path.is_symlink() else None
