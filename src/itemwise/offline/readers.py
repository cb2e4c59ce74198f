"""Rows of one file: JSONL, CSV and Parquet. A row that cannot be read is an `Unread`."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Protocol

import orjson

from itemwise.errors import BatchError, ConfigError, brief
from itemwise.offline.files import COMPRESSIONS, InputFile
from itemwise.offline.rows import Row, Unread
from itemwise.request.json_body import why_no_json

MAX_ROW_BYTES = 64 << 20  # a longer line or cell is an error
PARQUET_ROWS = 512  # that are read at a time
MAX_SHOWN = 80  # characters of a row that an error shows


@dataclass(frozen=True)
class Unit:
    """Rows that are read at a time.

    Attributes:
        rows: a mapping by column each; of a table only the columns that are scored.
        table: what the output repeats of them, a `pyarrow.Table`; None if that is in `rows`.
        num_bytes: of their text, about.
        position: stored bytes of the file up to their end, about.
    """

    rows: Sequence[Row]
    table: Any
    num_bytes: int
    position: float


class Reader(Protocol):
    """Reads files of one format."""

    def schema(self, file: InputFile) -> Any:
        """Names of the columns, or a `pyarrow.Schema`; None where each row has its own."""
        ...

    def units(self, file: InputFile, skip: int) -> Generator[Unit, None, int]:
        """All rows but the first `skip`; returns how many those were."""
        ...


@contextmanager
def explained(file: InputFile) -> Iterator[None]:
    """Says which file it is that cannot be read.

    Raises:
        BatchError: it is damaged, or of another format than its name says.
    """
    try:
        yield
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's errors are of both kinds
        raise BatchError(f"`{file.place.shown}` cannot be read: {brief(error)}") from error


@contextmanager
def _plain(file: InputFile) -> Iterator[tuple[io.BufferedReader, IO[bytes]]]:
    """What is in the file, decompressed, and the file itself."""
    import pyarrow as pa

    with file.place.opened() as stored:
        kind = COMPRESSIONS.get(file.place.suffixes[1])
        if kind is None:
            yield io.BufferedReader(stored), stored  # type: ignore[arg-type]
            return
        # Unlike others, it reads files of several parts and notices when the end is missing.
        inside = pa.CompressedInputStream(pa.PythonFile(stored, mode="r"), kind)
        yield io.BufferedReader(inside), stored


class JsonlReader:
    """A JSON object a line; empty lines are left out."""

    def schema(self, file: InputFile) -> None:
        """None: each row has columns of its own."""

    def units(self, file: InputFile, skip: int) -> Generator[Unit, None, int]:
        """See `Reader`."""
        skipped = number = 0
        with _plain(file) as (text, stored):
            while line := text.readline(MAX_ROW_BYTES):
                number += 1
                is_long = len(line) == MAX_ROW_BYTES
                while len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
                    line = text.readline(MAX_ROW_BYTES)
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if not (is_long or line.strip()):
                    continue
                if skipped < skip:
                    skipped += 1
                    continue
                where = f"line {number} of `{file.place.shown}`"
                row = Unread(f"row_too_long: {where}") if is_long else _json_row(line, where)
                yield Unit((row,), None, len(line), stored.tell())
        return skipped


def _json_row(line: bytes, where: str) -> Row:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Unread(f"invalid_json: {where} is not JSON: {why_no_json(line, error)}")
    if isinstance(row, dict):
        return row
    return Unread(f"invalid_json: {where} is {repr(row)[:MAX_SHOWN]}, expected an object")


class CsvReader:
    """Text cells below a header."""

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter

    @contextmanager
    def _rows(self, file: InputFile) -> Iterator[tuple[Iterator[list[str]], IO[bytes]]]:
        csv.field_size_limit(MAX_ROW_BYTES)
        with _plain(file) as (text, stored):
            lines = io.TextIOWrapper(
                text, encoding="utf-8-sig", errors="surrogateescape", newline=""
            )
            yield csv.reader(lines, delimiter=self._delimiter), stored

    def schema(self, file: InputFile) -> list[str]:
        """The header."""
        with self._rows(file) as (rows, _):
            header = next(rows, [])
        if not header or len(set(header)) < len(header):
            what = "the same column twice" if header else "no header"
            raise ConfigError(
                f"`{file.place.shown}` has {what}, expected a first row with the names of columns"
            )
        if any(_unicode(name) != name for name in header):
            raise ConfigError(
                f"`{file.place.shown}` has a first row that is no UTF-8, expected the names of "
                "columns; save it as CSV in UTF-8"
            )
        return header

    def units(self, file: InputFile, skip: int) -> Generator[Unit, None, int]:
        """See `Reader`."""
        skipped, number = 0, 1
        with self._rows(file) as (rows, stored):
            header = next(rows)
            while True:
                number += 1
                try:
                    cells = next(rows)
                    fault = f"has {len(cells)} cells, expected {len(header)}"
                except StopIteration:
                    return skipped
                except csv.Error as error:
                    cells, fault = [""] * (len(header) + 1), f"is not CSV: {brief(error)}"
                if not cells:
                    continue
                if skipped < skip:
                    skipped += 1
                    continue
                clean = [_unicode(cell) for cell in cells]
                if clean != cells:
                    fault = "has bytes that are no UTF-8"
                columns = dict(zip(header, clean, strict=False))
                row: Row = columns
                if clean != cells or len(cells) != len(header):
                    where = f"row {number} of `{file.place.shown}`"
                    row = Unread(f"invalid_csv: {where} {fault}", columns)
                yield Unit((row,), None, sum(map(len, cells)), stored.tell())


def _unicode(cell: str) -> str:
    """The text with a replacement character for each byte that is no UTF-8."""
    return (
        cell if cell.isascii() else cell.encode(errors="surrogateescape").decode(errors="replace")
    )


class ParquetReader:
    """Tables.

    Args:
        scored: columns that are scored; None for all.
        kept: columns that the output repeats; None for all.
    """

    def __init__(self, scored: Sequence[str] | None, kept: Sequence[str] | None) -> None:
        self._scored = scored
        self._kept = kept

    @contextmanager
    def _opened(self, file: InputFile) -> Iterator[Any]:
        import pyarrow.parquet as pq

        with file.place.opened() as stored, pq.ParquetFile(stored, pre_buffer=False) as opened:
            yield opened

    def schema(self, file: InputFile) -> Any:
        """The file's schema."""
        with self._opened(file) as opened:
            return opened.schema_arrow.remove_metadata()

    def units(self, file: InputFile, skip: int) -> Generator[Unit, None, int]:
        """See `Reader`."""
        import pyarrow as pa

        skipped = done = 0
        with self._opened(file) as opened:
            names = opened.schema_arrow.names
            scored = names if self._scored is None else list(self._scored)
            kept = names if self._kept is None else list(self._kept)
            needed = [name for name in names if name in scored or name in kept]
            total = opened.metadata.num_rows
            for group in range(opened.num_row_groups):
                num_rows = opened.metadata.row_group(group).num_rows
                if skipped + num_rows <= skip:
                    skipped, done = skipped + num_rows, done + num_rows
                    continue
                for batch in opened.iter_batches(PARQUET_ROWS, [group], columns=needed):
                    done += len(batch)
                    drop = min(skip - skipped, len(batch))
                    skipped += drop
                    if drop < len(batch):
                        table = pa.Table.from_batches([batch.slice(drop)])
                        rows = table.select(scored).to_pylist()
                        repeated = table.select(kept).replace_schema_metadata(None)
                        yield Unit(rows, repeated, table.nbytes, file.size * done / total)
        return skipped
