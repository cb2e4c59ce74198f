"""Rows, files and scores without a model, for tests of jobs over files."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from itemwise.offline.rows import Row, RowForm, Unread
from itemwise.offline.run import BatchRun, Outcome, Task
from itemwise.progress import ProgressFn, silent

PAIRS = RowForm(query_column="query", item_column="item")


def fake_score(
    rows: Sequence[Row], on_progress: ProgressFn = silent, form: RowForm = PAIRS
) -> list[dict[str, Any]]:
    """As a `RowScorer` of pairs: a score that depends on the row alone, or an error."""
    results = []
    for row in rows:
        values: tuple[Any, ...]
        if isinstance(row, Unread):
            values = (None, None, row.error)
        elif not all(isinstance(row.get(name), str) for name in form.input_columns):
            values = (None, None, "missing_column: none")
        else:
            text = "|".join(str(row[name]) for name in form.input_columns)
            values = (zlib.crc32(text.encode()) / 2**32, False, None)
        results.append(dict(zip(form.columns, values, strict=True)))
        on_progress("rows", len(results), len(rows))
    return results


def pairs(count: int) -> list[dict[str, Any]]:
    """Rows of an id, one of seven queries, and an item."""
    return [{"id": i, "query": f"query {i % 7}", "item": f"item {i}"} for i in range(count)]


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes rows; the path as text."""
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return str(path)


def run(
    source: str, output: str, form: RowForm = PAIRS, settings: Any = None, **task: Any
) -> Outcome:
    """Runs a job with `fake_score` to its end."""
    work = BatchRun(Task(source, output, form, **task))
    job = work.open(settings or {})
    try:
        return work.run(job, lambda rows, shown: fake_score(rows, shown, form))
    finally:
        job.close()
