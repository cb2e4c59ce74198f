"""Input and output of `score` and `rank`: requests from files, scores as a table."""

from __future__ import annotations

import codecs
import re
import sys
from pathlib import Path
from typing import Any

import orjson
from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from itemwise.errors import RequestError
from itemwise.progress import progress
from itemwise.request.calls import ScoreCall
from itemwise.request.check import REQUEST_FIELDS
from itemwise.request.json_body import why_no_json
from itemwise.scorer import Scorer
from itemwise.types import RankedItem, ScoreResult

BAR_WIDTH = 20


def read_request(path: Path) -> dict[str, Any]:
    """The fields of a score request from a JSON file; see `read_json`."""
    return {name: value for name, value in read_json(path).items() if name in REQUEST_FIELDS}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or on standard input if the path is `-`.

    Raises:
        RequestError: the file cannot be read, or is not a JSON object (`invalid_json`).
    """
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise RequestError("invalid_json", f"`{path}` cannot be read: {error.strerror}") from error
    try:
        body = orjson.loads(raw.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        why = why_no_json(raw, error)
        raise RequestError("invalid_json", f"`{path}` is not JSON: {why}") from error
    if not isinstance(body, dict):
        raise RequestError("invalid_json", f"`{path}` is {type(body).__name__}, expected an object")
    return body


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a file, or of standard input if the path is `-`.

    Lines end where files say so; U+2028 and the like are characters of an item.

    Raises:
        RequestError: the file cannot be read as text (`invalid_items_type`).
    """
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        lines = re.split("\r\n|\n|\r", raw.decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError("invalid_items_type", f"`{path}` cannot be read: {error}") from error
    return [line for line in lines if line.strip()]


def print_ranking(
    model: str,
    settings: dict[str, Any],
    query: str,
    items: list[str],
    *,
    as_json: bool,
    **how: Any,
) -> None:
    """Ranks texts as `Scorer.rank` does with `how`; prints JSON, or a table with bars."""
    with progress() as on_progress:
        scorer = Scorer.from_pretrained(model, on_progress=on_progress, **settings)
        ranking = scorer.rank(query, items, **how, on_progress=on_progress)
    if as_json:
        sys.stdout.write(orjson.dumps(ranking).decode() + "\n")
        return
    Console().print(ranking_table(query, ranking))


def ranking_table(query: str, ranking: list[RankedItem]) -> Table:
    """A table with a row per item and its score as a bar."""
    table = Table(title=Text(f"query: {query}"), title_justify="left")
    table.add_column("item")
    table.add_column("score", justify="right")
    table.add_column("", width=BAR_WIDTH)
    for item in ranking:
        length = min(max(item.score, 0.0), 1.0)  # a profile may have scores beyond these
        bar = Bar(1.0, 0.0, length, width=BAR_WIDTH, color="green")
        table.add_row(Text(item.text), f"{item.score:.3f}", bar)
    return table


def print_scores(
    model: str, settings: dict[str, Any], fields: dict[str, Any], *, as_json: bool
) -> None:
    """Scores one request and prints JSON, or a table with a row per item."""
    with progress() as on_progress:
        scorer = Scorer.from_pretrained(model, on_progress=on_progress, **settings)
        result = scorer.run_call(ScoreCall(fields), on_progress)
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
