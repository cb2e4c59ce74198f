"""Files of results: reads and writes JSON, all of it or nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itemwise.errors import ResultsError

Json = dict[str, Any]


def read_json(path: Path) -> Json:
    """The object in a JSON file.

    Raises:
        ResultsError: the file is missing, is not JSON, or is not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"`{path}` cannot be read ({error.strerror}): check the path") from error
    except ValueError as error:
        raise ResultsError(f"`{path}` is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ResultsError(f"`{path}` is a JSON {type(content).__name__}, expected an object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file through a temporary file, so that a reader never sees a partial one.

    Raises:
        ResultsError: the file cannot be written.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file in the same way.

    Raises:
        ResultsError: the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise ResultsError(f"`{path}` cannot be written ({error.strerror})") from error
