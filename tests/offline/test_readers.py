"""Rows of files: what is read, what is an error of one row, and what stops a job."""

from __future__ import annotations

import bz2
import codecs
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itemwise.errors import BatchError, ConfigError
from itemwise.offline import readers
from itemwise.offline.files import find_inputs
from itemwise.offline.reading import Source
from itemwise.offline.rows import Row, RowForm, Unread
from tests.offline.common import pairs, run, write_jsonl

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}


def read(url: Path | str, start: int = 0, window: int = 7) -> list[Row]:
    source = Source(find_inputs(str(url)), None, None)
    return [row for unit in source.windows(start, window) for row in unit.rows]


def lines(output: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in output.read_bytes().splitlines()]


def write_csv(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


@pytest.mark.parametrize("suffix", PACK)
def test_compressed_files_of_several_parts_are_read_whole(tmp_path: Path, suffix: str) -> None:
    rows = pairs(50)
    halves = [
        b"".join(orjson.dumps(row) + b"\n" for row in part) for part in (rows[:20], rows[20:])
    ]
    (tmp_path / f"in.jsonl{suffix}").write_bytes(b"".join(map(PACK[suffix], halves)))
    assert read(tmp_path / f"in.jsonl{suffix}") == rows
    assert read(tmp_path / f"in.jsonl{suffix}", start=33) == rows[33:]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_compressed_file_without_its_end_stops_the_job(tmp_path: Path, suffix: str) -> None:
    text = b"".join(orjson.dumps(row) + b"\n" for row in pairs(5000))
    (tmp_path / f"in.jsonl{suffix}").write_bytes(PACK[suffix](text)[:-5])
    with pytest.raises(BatchError, match=r"in\.jsonl.* cannot be read: Truncated"):
        run(str(tmp_path / f"in.jsonl{suffix}"), str(tmp_path / "out.jsonl"))


def test_bad_lines_fail_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 60)
    good = b'{"query": "a", "item": "b"}\n'
    bad = [
        b'{"query": "a", "item": NaN}\n',
        b"{'query': 1}\n",
        b"[1, 2]\n",
        b'{"query": "\xff", "item": "b"}\n',
        b'{"query": "\\ud800", "item": "b"}\n',
        b'{"query": "' + b"a" * 100 + b'", "item": "b"}\n',
        b'{"item": "b"}\n',
    ]
    (tmp_path / "in.jsonl").write_bytes(codecs.BOM_UTF8 + good + b"\n".join([b"", *bad]) + good)
    run(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    written = lines(tmp_path / "out.jsonl")
    assert [row["error"] is None for row in written] == [True, *[False] * len(bad), True]
    assert written[0]["score"] == written[-1]["score"]
    starts = [row["error"].split(":")[0] for row in written[1:-1]]
    assert starts == [*["invalid_json"] * 5, "row_too_long", "missing_column"]
    assert "line 3 of `" in written[1]["error"]
    assert written[4]["error"].endswith("byte 11 is 0xff, which is no UTF-8")


def test_long_first_line_is_one_row_whatever_it_begins_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 60)
    long = b'{"query": "' + b"a" * 100 + b'", "item": "b"}\n'
    (tmp_path / "in.jsonl").write_bytes(codecs.BOM_UTF8 + long + b'{"query": "a", "item": "b"}\n')
    run(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    written = lines(tmp_path / "out.jsonl")
    assert [row["error"] and row["error"].split(":")[0] for row in written] == [
        "row_too_long",
        None,
    ]


def test_bad_rows_of_csv_fail_alone(tmp_path: Path) -> None:
    text = b'id,query,item\r\n1,a,b\n2,a\n3,a,b,c\n\n007,\xff,b\n5,"x\ny","quoted, ""b"""\n'
    run(write_csv(tmp_path / "in.csv", text), str(tmp_path / "out.jsonl"))
    written = lines(tmp_path / "out.jsonl")
    errors = [row.pop("error") for row in written]
    assert [error and error.split(" of ")[0] for error in errors] == [
        None,
        "invalid_csv: row 3",
        "invalid_csv: row 4",
        "invalid_csv: row 6",
        None,
    ]
    assert [row["id"] for row in written] == ["1", "2", "3", "007", "5"]
    assert written[4]["query"] == "x\ny"
    assert written[4]["item"] == 'quoted, "b"'
    assert written[3]["query"] == "�"


def test_csv_goes_around_with_its_text_as_it_was(tmp_path: Path) -> None:
    text = 'id\tquery\titem\n007\t1.0\t"a\tb"\n1e5\ttrue\tNone\n'
    run(write_csv(tmp_path / "in.tsv", text), str(tmp_path / "out.tsv"))
    written = (tmp_path / "out.tsv").read_text().splitlines()
    assert written[0] == "id\tquery\titem\tscore\ttruncated\terror"
    assert [line.rsplit("\t", 3)[0] for line in written[1:]] == text.splitlines()[1:]


def test_parquet_keeps_the_types_of_its_columns(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array([1, 2, 3], pa.uint16()),
            "when": pa.array([0, None, 5], pa.timestamp("us", "UTC")),
            "tags": pa.array([["a"], [], None], pa.list_(pa.large_string())),
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
            "query": ["a", None, "c"],
            "item": ["d", "e", "f"],
        }
    )
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=2)
    run(str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), window_rows=1)
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.select(table.column_names).equals(table)
    assert written.schema.field("score").type == pa.float64()
    assert [bool(error) for error in written["error"].to_pylist()] == [False, True, False]


def test_every_format_gives_the_same_scores(tmp_path: Path) -> None:
    rows = pairs(30)
    write_jsonl(tmp_path / "in.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    header = "id,query,item\n"
    write_csv(
        tmp_path / "in.csv", header + "".join(f"{r['id']},{r['query']},{r['item']}\n" for r in rows)
    )
    scores = []
    for source in ("in.jsonl", "in.csv", "in.parquet"):
        for target in ("jsonl", "csv", "parquet"):
            output = tmp_path / f"{source}.{target}"
            run(str(tmp_path / source), str(output), kept=["id"])
            if target == "parquet":
                found = pq.read_table(output).to_pylist()
            elif target == "jsonl":
                found = lines(output)
            else:
                found = [dict(row) for row in read(output) if not isinstance(row, Unread)]
            scores.append([(str(row["id"]), float(row["score"])) for row in found])
    assert all(each == scores[0] for each in scores)
    assert len(scores[0]) == 30


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    group=st.integers(1, 5),
    start=st.integers(0, 48),
    window=st.integers(1, 20),
    kind=st.sampled_from(["jsonl", "csv", "parquet"]),
)
def test_reading_from_a_row_on_gives_the_rows_behind_it(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    group: int,
    start: int,
    window: int,
    kind: str,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    rows = [{"id": str(i), "query": "q", "item": str(i)} for i in range(sum(sizes))]
    left = list(rows)
    for number, size in enumerate(sizes):
        part, left = left[:size], left[size:]
        path = folder / f"{number}.{kind}"
        if kind == "jsonl":
            write_jsonl(path, part)
        elif kind == "csv":
            body = "".join(f"{row['id']},q,{row['item']}\n" for row in part)
            path.write_text(f"id,query,item\n{body}")
        else:
            schema = pa.schema([(name, pa.string()) for name in ("id", "query", "item")])
            pq.write_table(pa.Table.from_pylist(part, schema), path, row_group_size=group)
    if start > len(rows):
        with pytest.raises(BatchError, match="fewer rows"):
            read(folder, start, window)
    else:
        assert read(folder, start, window) == rows[start:]


def test_column_of_a_row_is_not_written_over(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{**row, "score": 0.5} for row in pairs(2)])
    run(source, str(tmp_path / "out.jsonl"))
    assert [row["error"].split(":")[0] for row in lines(tmp_path / "out.jsonl")] == [
        *["column_taken"] * 2
    ]
    run(source, str(tmp_path / "free.jsonl"), RowForm(None, "query", "item", prefix="my_"))
    for row in lines(tmp_path / "free.jsonl"):
        assert (row["score"], row["my_error"]) == (0.5, None)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("query,item".encode("utf-16"), "a first row that is no UTF-8, expected the names"),
        ("qu\xe9ry,item\n".encode("latin-1"), "a first row that is no UTF-8"),
        (b"a,\x1b[2J\n", r"expected one of a, '\\x1b\[2J'$"),
        (b"a" * 9000 + b"\n", r"expected one of a{300}\.\.\.$"),
    ],
)
def test_header_that_is_none_is_refused_without_its_bytes(
    tmp_path: Path, header: bytes, message: str
) -> None:
    (tmp_path / "in.csv").write_bytes(header + b"b,c\n")
    with pytest.raises((BatchError, ConfigError), match=message):
        run(str(tmp_path / "in.csv"), str(tmp_path / "out.csv"))


def test_input_that_does_not_fit_is_refused_at_once(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", pairs(3))
    table = write_csv(tmp_path / "in.csv", "id,query,score\n1,a,b\n")
    other = RowForm(query_column="query", item_column="score")
    prefixed = RowForm(query_column="query", item_column="score", prefix="my_")
    out = str(tmp_path / "out")
    for arguments, message in (
        ((str(tmp_path / "no.jsonl"), f"{out}.jsonl"), "has no file"),
        ((str(tmp_path / "no*.jsonl"), f"{out}.jsonl"), "has no file"),
        ((str(tmp_path), f"{out}.jsonl"), "of no known format, or of several"),
        ((source, f"{out}.xlsx"), "of no known format"),
        ((source, f"{out}.csv"), "--id-column"),
        (
            (source, f"{out}.parquet.gz", RowForm(query_column="query", item_column="item")),
            "--id-column",
        ),
        ((table, f"{out}.parquet.gz", prefixed), "packs its columns"),
        ((table, f"{out}.csv"), "has no column `item`, expected one of id, query, score"),
        ((table, f"{out}.csv", other), "has a column `score`.*--prefix"),
        (("nosuchscheme://x/in.jsonl", f"{out}.jsonl"), "cannot be opened"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(*arguments)
    assert run(table, f"{out}.csv", prefixed).num_rows == 1
