"""What the commands of `cli.py` share: progress, requests from files, scores as a table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from itemwise.errors import RequestError
from itemwise.request import REQUEST_FIELDS
from itemwise.run import Progress as Told
from itemwise.scorer import Scorer
from itemwise.types import ScoreResult

PLAIN_LINES = 10  # lines that a long job prints where there is no terminal


@contextmanager
def progress() -> Iterator[Told]:
    """Shows progress on stderr: bars on a terminal, a few plain lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield told


def _plain_line(what: str, done: int, total: int) -> None:
    if done == total or done % max(1, total // PLAIN_LINES) == 0:
        sys.stderr.write(f"{what} {done}/{total}\n")


def read_request(path: Path) -> dict[str, Any]:
    """The fields of a request from a JSON file, or from standard input if the path is `-`.

    Raises:
        RequestError: the file cannot be read, or holds no JSON object (`invalid_json`).
    """
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise RequestError("invalid_json", f"`{path}` cannot be read: {error.strerror}") from error
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RequestError("invalid_json", f"`{path}` is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestError("invalid_json", f"`{path}` is {type(body).__name__}, expected an object")
    return {name: value for name, value in body.items() if name in REQUEST_FIELDS}


def print_scores(
    model: str, settings: dict[str, Any], fields: dict[str, Any], *, as_json: bool
) -> None:
    """Scores one request and prints JSON, or a table with a row per item."""
    with progress() as told:
        scorer = Scorer.from_pretrained(model, on_progress=told, **settings)
        result = scorer.engine.score([scorer.prepare(**fields)], told)[0]
    scores = [row.tolist() for row in result.scores]
    if as_json:
        body = {
            "object": "scoring",
            "model": model,
            "scores": scores,
            "usage": {"prompt_tokens": result.prompt_tokens},
            "self_check": scorer.info()["self_check"]["status"],
        }
        sys.stdout.write(orjson.dumps(body).decode() + "\n")
        return
    Console().print(_table(fields, result))


def _table(fields: dict[str, Any], result: ScoreResult) -> Table:
    labels = fields.get("labels") or fields.get("label_token_ids") or []
    shared = not any(isinstance(label, list) for label in labels)
    headings = [repr(label) for label in labels] if shared else ["scores"]
    table = Table()
    table.add_column("item")
    for heading in headings:
        table.add_column(Text(heading), justify="right")
    for item, row in zip(fields["items"], result.scores, strict=True):
        numbers = [f"{value:.6g}" for value in row.tolist()]
        table.add_row(Text(str(item)), *(numbers if shared else ["  ".join(numbers)]))
    return table
