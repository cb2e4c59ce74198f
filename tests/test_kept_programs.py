"""Compiled programs stay between runs of the tests; verdicts of the self-check do not."""

from __future__ import annotations

import os
from pathlib import Path

from tests.conftest import remove_verdicts


def test_verdicts_and_old_programs_go(tmp_path: Path) -> None:
    kept, old = tmp_path / "engines" / "kept-cache", tmp_path / "ops" / "old-cache"
    verdict = tmp_path / "home" / "itemwise" / "self-checks" / "one.json"
    for path in (kept, old, verdict):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    os.utime(old, (100, 100))
    remove_verdicts(tmp_path, oldest=200)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]
