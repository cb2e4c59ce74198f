"""The rows of all input files, a window at a time.

Where a window ends depends on where it begins and on the input alone, so a job that goes on in the
middle makes the same windows as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from itemwise.errors import BatchError, ConfigError
from itemwise.offline.files import COMPRESSIONS, InputFile
from itemwise.offline.readers import (
    CsvReader,
    JsonlReader,
    ParquetReader,
    Reader,
    Unit,
    explained,
)

MAX_WINDOW_BYTES = 64 << 20  # text of a window
MAX_SHOWN_NAMES = 300  # characters of the names of columns that an error shows
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


class Source:
    """The rows of some files of one format.

    Args:
        files: at least one.
        scored: columns that are scored; None for all.
        kept: columns that the output repeats; None for all.

    Attributes:
        columns: names of all columns, the same in every file; None where each row has its own.
        kept: names of those that the output repeats; None for all that a row has.
        schema: `pyarrow.Schema` of what is kept, of Parquet; None otherwise.
        num_bytes: of all files as they are stored.

    Raises:
        ConfigError: the files are of different formats or columns, or lack a column.
        BatchError: one cannot be read.
    """

    def __init__(
        self,
        files: Sequence[InputFile],
        scored: Sequence[str] | None,
        kept: Sequence[str] | None,
    ) -> None:
        self._files = files
        suffixes = {file.place.suffixes[0] for file in files}
        name = format_of(suffixes, files[0].place.shown)
        self._reader = _reader(name, scored, kept)
        self.num_bytes = sum(file.size for file in files)
        self.columns: list[str] | None = None
        self.kept = None if kept is None else list(kept)
        self.schema: Any = None
        first = self._common_schema()
        if first is None:
            return
        self.columns = first if isinstance(first, list) else first.names
        self.kept = self.columns if self.kept is None else self.kept
        for name in (*(scored or ()), *self.kept):
            if name not in self.columns:
                raise ConfigError(
                    f"`{files[0].place.shown}` has no column `{name}`, expected one of "
                    f"{_names(self.columns)}"
                )
        if not isinstance(first, list):
            import pyarrow as pa

            self.schema = pa.schema([first.field(name) for name in self.kept])

    def _common_schema(self) -> Any:
        first: Any = None
        for file in self._files:
            with explained(file):
                schema = self._reader.schema(file)
            if first is not None and schema != first:
                raise ConfigError(
                    f"`{file.place.shown}` has other columns than `{self._files[0].place.shown}`; "
                    "score them one after another"
                )
            first = schema
        return first

    def windows(self, start: int, max_rows: int) -> Iterator[Unit]:
        """All rows from number `start` on, in units of about `max_rows` rows.

        Raises:
            BatchError: a file cannot be read, or there are fewer rows.
        """
        units: list[Unit] = []
        num_rows = num_bytes = 0
        for unit in self._units(start):
            units.append(unit)
            num_rows += len(unit.rows)
            num_bytes += unit.num_bytes
            if num_rows >= max_rows or num_bytes >= MAX_WINDOW_BYTES:
                window, units, num_rows, num_bytes = _joined(units), [], 0, 0
                yield window
                del window  # before the next one is read
        if units:
            yield _joined(units)

    def _units(self, start: int) -> Iterator[Unit]:
        left, before = start, 0
        for file in self._files:
            units = self._reader.units(file, left)
            while True:
                try:
                    with explained(file):
                        unit = next(units)
                except StopIteration as end:
                    left -= end.value
                    break
                yield Unit(unit.rows, unit.table, unit.num_bytes, before + unit.position)
            before += file.size
        if left:
            raise BatchError(f"the input has fewer rows than the {start} that were scored of it")


def _reader(name: str, scored: Sequence[str] | None, kept: Sequence[str] | None) -> Reader:
    if name == "jsonl":
        return JsonlReader()
    if name == "parquet":
        return ParquetReader(scored, kept)
    return CsvReader("\t" if name == "tsv" else ",")


def format_of(suffixes: set[str], shown: str) -> str:
    """The format of files with these suffixes.

    Raises:
        ConfigError: there is none, or several.
    """
    formats = {FORMATS.get(suffix) for suffix in suffixes}
    found = formats.pop()
    if found is None or formats:
        raise ConfigError(
            f"`{shown}` is of no known format, or of several: expected names that end in "
            f"{', '.join(FORMATS)}, and then perhaps in {', '.join(COMPRESSIONS)}"
        )
    return found


def _joined(units: Sequence[Unit]) -> Unit:
    table = units[0].table
    if table is not None:
        import pyarrow as pa

        table = pa.concat_tables([unit.table for unit in units])
    rows = [row for unit in units for row in unit.rows]
    return Unit(rows, table, sum(unit.num_bytes for unit in units), units[-1].position)


def _names(columns: Sequence[str]) -> str:
    """Names of columns for a message, without what a terminal obeys, and no more than fit."""
    names = ", ".join(name if name.isprintable() else repr(name) for name in columns)
    return names if len(names) <= MAX_SHOWN_NAMES else f"{names[:MAX_SHOWN_NAMES]}..."
