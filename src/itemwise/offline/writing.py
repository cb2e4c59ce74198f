"""Rows and their results as JSONL, CSV and Parquet: parts of an output, and the whole of them."""

from __future__ import annotations

import csv
import io
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import orjson

from itemwise.errors import ConfigError
from itemwise.offline.files import COPY_BYTES, Place
from itemwise.offline.readers import Unit
from itemwise.offline.reading import Source, format_of
from itemwise.offline.rows import RowForm, Unread

Results = Sequence[Mapping[str, Any]]


class Writer(ABC):
    """Writes one format.

    Args:
        form: of the rows.
        kept: columns of the input that are repeated; None for all that a row has.
        compress: packs a part; parts that are packed one by one can be put end to end.
    """

    def __init__(
        self, form: RowForm, kept: Sequence[str] | None, compress: Callable[[bytes], bytes]
    ) -> None:
        self.form = form
        self.kept = kept
        self.compress = compress

    @abstractmethod
    def part(self, rows: Unit, results: Results) -> bytes:
        """A window's rows with their results."""

    def head(self) -> bytes:
        """What comes before the first part."""
        return b""

    def join(self, parts: Sequence[Place], out: IO[bytes]) -> None:
        """Writes the whole output from its parts."""
        out.write(self.head())
        for part in parts:
            with part.opened() as file:
                while block := file.read(COPY_BYTES):
                    out.write(block)

    def joined_rows(self, rows: Unit, results: Results) -> list[dict[str, Any]]:
        """Each row's kept columns, then its results."""
        table = rows.table
        kept: Sequence[Any] = rows.rows if table is None else table.to_pylist()
        return [{**self._kept(row), **added} for row, added in zip(kept, results, strict=True)]

    def _kept(self, row: Any) -> Mapping[str, Any]:
        columns: Mapping[str, Any] = row.columns if isinstance(row, Unread) else row
        if self.kept is None:
            return columns
        return {name: columns.get(name) for name in self.kept}


class JsonlWriter(Writer):
    """A JSON object a line."""

    def part(self, rows: Unit, results: Results) -> bytes:
        """See `Writer`."""
        lines = [_json(row) + b"\n" for row in self.joined_rows(rows, results)]
        return self.compress(b"".join(lines))


class CsvWriter(Writer):
    """Cells below a header; what is no text is JSON, and nothing an empty cell."""

    delimiter = ","

    def head(self) -> bytes:
        """The header."""
        return self.compress(self._lines([[*(self.kept or ()), *self.form.columns]]))

    def part(self, rows: Unit, results: Results) -> bytes:
        """See `Writer`."""
        cells = [map(_cell, row.values()) for row in self.joined_rows(rows, results)]
        return self.compress(self._lines(cells))

    def _lines(self, cells: Any) -> bytes:
        text = io.StringIO()
        csv.writer(text, delimiter=self.delimiter, lineterminator="\n").writerows(cells)
        return text.getvalue().encode()


class TsvWriter(CsvWriter):
    """The same, between tabs."""

    delimiter = "\t"


class ParquetWriter(Writer):
    """A table, with the types of the input if that is one; a part is a row group.

    Args:
        form: of the rows.
        kept: columns of the input that are repeated.
        compress: not used: Parquet packs its columns itself.
        schema: `pyarrow.Schema` of what is kept; None for text.
    """

    def __init__(
        self,
        form: RowForm,
        kept: Sequence[str] | None,
        compress: Callable[[bytes], bytes],
        schema: Any = None,
    ) -> None:
        import pyarrow as pa

        super().__init__(form, kept, compress)
        if schema is None:
            schema = pa.schema([(name, pa.string()) for name in kept or ()])
        self._kept_schema = schema
        self._schema = pa.schema([*schema, *result_fields(form)])

    def part(self, rows: Unit, results: Results) -> bytes:
        """See `Writer`."""
        import pyarrow as pa

        table = rows.table
        if table is None:
            names = self._kept_schema.names
            kept = [self._kept(row) for row in rows.rows]
            texts = {name: [_text(row[name]) for row in kept] for name in names}
            table = pa.table(texts, schema=self._kept_schema)
        columns = [*table.columns]
        for field in result_fields(self.form):
            values = [row[field.name] for row in results]
            if self.form.kind == "result" and field.name == self.form.columns[0]:
                values = [_text(value) for value in values]
            columns.append(pa.array(values, field.type))
        out = io.BytesIO()
        self._write(out, [pa.table(columns, schema=self._schema)])
        return out.getvalue()

    def join(self, parts: Sequence[Place], out: IO[bytes]) -> None:
        """See `Writer`."""
        import pyarrow.parquet as pq

        def tables() -> Any:
            for part in parts:
                with part.opened() as file:
                    yield pq.read_table(file)

        self._write(out, tables())

    def _write(self, out: IO[bytes], tables: Any) -> None:
        import pyarrow.parquet as pq

        with pq.ParquetWriter(out, self._schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table, row_group_size=max(1, len(table)))


def result_fields(form: RowForm) -> list[Any]:
    """The columns of results as a list of `pyarrow.Field`; a body is JSON text."""
    import pyarrow as pa

    kinds = {"score": pa.float64(), "scores": pa.list_(pa.float32()), "result": pa.string()}
    types = [kinds[form.kind], pa.bool_(), pa.string()]
    return [pa.field(name, kind) for name, kind in zip(form.columns, types, strict=True)]


def writer_for(output: Place, form: RowForm, source: Source) -> Writer:
    """The writer of an output, by its name.

    Raises:
        ConfigError: its format is unknown, the input does not fit it, or a result's column is
            there already.
    """
    suffix, compression = output.suffixes
    name = format_of({suffix}, output.shown)
    if name != "jsonl" and source.kept is None:
        raise ConfigError(
            f"`{output.shown}` needs columns that are the same for all rows, and those of JSON "
            "lines are not: name what to repeat (`--id-column`), or write JSON lines"
        )
    if taken := sorted({*form.columns} & {*(source.kept or ())}):
        raise ConfigError(
            f"the input has a column `{taken[0]}`, as the results have: give theirs a prefix "
            "(`--prefix`), or name the columns to repeat (`--id-column`)"
        )
    compress = _COMPRESS[compression]
    if name == "parquet":
        if compression:
            raise ConfigError(
                f"`{output.shown}`: Parquet packs its columns itself, expected .parquet"
            )
        return ParquetWriter(form, source.kept, compress, source.schema)
    kinds: dict[str, type[JsonlWriter | CsvWriter]]
    kinds = {"jsonl": JsonlWriter, "csv": CsvWriter, "tsv": TsvWriter}
    return kinds[name](form, source.kept, compress)


def _gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(6, wbits=31)  # without the time, which a file of gzip has
    return packer.compress(data) + packer.flush()


def _bz2(data: bytes) -> bytes:
    import bz2

    return bz2.compress(data)


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.compress(data)


_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": _gzip,
    ".bz2": _bz2,
    ".zst": _zstd,
}


def _json(value: Any) -> bytes:
    return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    """What JSON has in place of a value of Parquet that it lacks."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else _json(value).decode()


def _cell(value: Any) -> str:
    return _text(value) or ""
