"""Ray Data with two engines of the demo model on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from itemwise import Scorer
from itemwise.cli.app import app
from itemwise.errors import ConfigError
from itemwise.offline.rows import RowForm, RowScorer
from itemwise.ray import Engines
from itemwise.ray.dataset import RowEngine
from tests.conftest import DEMO_POOL
from tests.ray.clusters import in_session

ROWS: list[dict[str, Any]] = [
    {"id": n, "query": f"desk lamps {n % 7} " * 10, "item": f"lamp {n}" if n % 9 else None}
    for n in range(90)
]
FORM = RowForm(
    query_column="query",
    item_column="item",
    fields={"labels": [" yes", " no"], "apply_softmax": True},
)


@pytest.fixture(scope="module")
def settings(cache_folder: str) -> dict[str, Any]:
    return {"kv_cache_bytes": DEMO_POOL, "compilation_cache_dir": cache_folder}


@pytest.fixture(scope="module")
def expected(settings: dict[str, Any]) -> list[dict[str, Any]]:
    return RowScorer(Scorer.from_pretrained(**settings), FORM)(ROWS)


def bits(rows: list[dict[str, Any]]) -> list[Any]:
    return [
        row["scores"] and np.asarray(row["scores"], np.float32).view(np.int32).tolist()
        for row in rows
    ]


@pytest.mark.slow
def test_table_gets_the_columns_of_results(
    settings: dict[str, Any], expected: list[dict[str, Any]]
) -> None:
    import pyarrow as pa

    engine = RowEngine("itemwise/demo", FORM, settings)
    table = engine(pa.Table.from_pylist(ROWS))
    assert table.column_names == ["id", "query", "item", *FORM.columns]
    assert bits(table.to_pylist()) == bits(expected)
    bodies = RowEngine("itemwise/demo", RowForm("/rerank"), settings)
    row = {"query": "lamp", "documents": ["a", "b"]}
    found = bodies(pa.Table.from_pylist([row])).to_pylist()[0]
    assert len(json.loads(found["result"])["results"]) == 2


def write_rows(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


@pytest.mark.slow
def test_two_engines_score_as_one(settings: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    text = in_session("score_rows.py", json.dumps(settings), write_rows, "scores.json")
    found = json.loads(text)
    assert [row["id"] for row in found] == [row["id"] for row in ROWS]
    assert bits(found) == bits(expected)
    assert [row["error"] for row in found] == [row["error"] for row in expected]
    assert sum(row["error"] is not None for row in found) == 10


@pytest.mark.slow
def test_batch_on_ray_writes_the_same_file(settings: dict[str, Any], tmp_path: Path) -> None:
    columns = ["--query-column", "query", "--item-column", "item", "--window", "40"]
    labels = ["--label", " yes", "--label", " no", "--apply-softmax", "--max-errors", "10"]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    options = [*columns, *labels, *flags]
    write_rows(tmp_path)
    files = [str(tmp_path / "rows.jsonl"), str(tmp_path / "out.jsonl")]
    alone = CliRunner().invoke(app, ["batch", *files, *options])
    assert alone.exit_code == 0, alone.output
    text = in_session("batch.py", json.dumps(options), write_rows, "out.jsonl")
    assert text == (tmp_path / "out.jsonl").read_text()


@pytest.mark.parametrize("wrong", [{"least": 0}, {"least": 3, "most": 2}])
def test_number_of_engines_is_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="least"):
        Engines(**wrong)
