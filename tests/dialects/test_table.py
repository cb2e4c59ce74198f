"""Every module of the room is registered, documented, and told apart from those on its path."""

from __future__ import annotations

import re
from pathlib import Path

from itemwise.dialects import base, score
from itemwise.dialects.base import Fault
from itemwise.dialects.table import by_path, dialect_of, dialects, error_body


def test_every_path_has_one_format_for_what_others_leave() -> None:
    for path, choices in by_path().items():
        *others, last = [each.takes is None for each in choices]
        assert not any(others), path
        assert last or not others, path  # alone on its path, a format gets every body


def test_formats_are_found_by_their_module() -> None:
    assert score.DIALECT in dialects()
    assert dialect_of("/v1/score", {"query": "a", "items": ["b"]}) is score.DIALECT


def test_every_format_has_its_row_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*)$", page, flags=re.MULTILINE))
    for name in names():
        assert name in rows, name
    for dialect in dialects():
        row = " ".join(rows.values())
        assert all(f"`{path}`" in row for path in dialect.paths)


def names() -> list[str]:
    folder = Path(base.__file__).parent
    return [path.stem for path in folder.glob("*.py") if "DIALECT = " in path.read_text()]


def test_paths_without_a_format_have_common_errors() -> None:
    fault = Fault(404, "not_found", "not_found_error", "no such path")
    body = error_body("/nowhere", fault)
    assert (body["code"], body["error"]["code"], body["message"]) == (
        404,
        "not_found",
        "no such path",
    )
