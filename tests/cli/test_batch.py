"""The command `batch`, with the demo model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner, Result

from itemwise.cli.app import app
from itemwise.scorer import Scorer
from tests.offline.common import write_jsonl

ROWS: list[dict[str, Any]] = [
    {"id": 1, "query": "desk lamp", "title": "Brass lamp for the desk"},
    {"id": 2, "query": "desk lamp"},
    {"id": 3, "query": "desk lamp", "title": "Tea kettle"},
]
COLUMNS = ("--query-column", "query", "--item-column", "title")


@pytest.fixture(scope="module")
def scorer(small: dict[str, Any]) -> Scorer:
    return Scorer.from_pretrained(**small)


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch, scorer: Scorer) -> None:
    """The command gets the scorer that is there."""
    monkeypatch.setattr(Scorer, "from_pretrained", lambda *_, **__: scorer)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "in.jsonl", ROWS)


def batch(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["batch", *arguments])


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_pairs_are_ranked_and_bad_rows_have_an_error(
    tmp_path: Path, source: str, scorer: Scorer
) -> None:
    output = tmp_path / "out.jsonl"
    result = batch(source, str(output), *COLUMNS)
    assert result.exit_code == 1, result.output
    assert "3 rows in" in result.output
    assert "1 with an error" in result.output
    first, second, third = lines(output)
    expected = {item.text: item.score for item in scorer.rank("desk lamp", [ROWS[0]["title"]])}
    assert first == {
        **ROWS[0],
        "score": expected[first["title"]],
        "truncated": False,
        "error": None,
    }
    assert second["error"].startswith("missing_column")
    assert third["score"] < first["score"]


def test_errors_that_are_allowed_are_a_success(tmp_path: Path, source: str) -> None:
    result = batch(source, str(tmp_path / "out.jsonl"), *COLUMNS, "--max-errors", "1")
    assert result.exit_code == 0, result.output


def test_fields_and_labels_reach_the_request(tmp_path: Path, source: str, scorer: Scorer) -> None:
    output = tmp_path / "out.jsonl"
    options = ("--label", " yes", "--label", " no", "--apply-softmax", "--field", "temperature=2")
    batch(source, str(output), *COLUMNS, *options, "--id-column", "id", "--prefix", "my_")
    (row,) = scorer.score(
        "desk lamp", ["Tea kettle"], labels=[" yes", " no"], apply_softmax=True, temperature=2.0
    ).scores
    last = lines(output)[-1]
    assert sorted(last) == ["id", "my_error", "my_scores", "my_truncated"]
    assert last["my_scores"] == [float(str(score)) for score in row]


def test_bodies_go_to_an_endpoint(tmp_path: Path) -> None:
    body = {"id": 7, "query": "desk lamp", "documents": ["Tea kettle", "Brass lamp"], "top_n": 1}
    source = write_jsonl(tmp_path / "in.jsonl", [body])
    result = batch(source, str(tmp_path / "out.jsonl"), "--endpoint", "/v1/rerank")
    assert result.exit_code == 0, result.output
    (row,) = lines(tmp_path / "out.jsonl")
    assert [each["index"] for each in row["result"]["results"]] == [1]


def test_job_with_other_settings_is_refused_by_name(tmp_path: Path, source: str) -> None:
    output = str(tmp_path / "out.jsonl")
    assert batch(source, output, *COLUMNS, "--max-errors", "0").exit_code == 1  # a `BatchError`
    other = ("--max-errors", "0", "--kv-cache-bytes", "9999999", "--dtype", "float32")
    error = batch(source, output, *COLUMNS, *other).exception
    assert '`dtype` was "auto", is "float32"' in str(error)
    assert "kv_cache_bytes" not in str(error)
    assert batch(source, output, *COLUMNS, "--restart").exit_code == 1
    assert len(lines(Path(output))) == len(ROWS)
