"""A job over files, from its first row to the whole output."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from itemwise.errors import BatchError
from itemwise.offline.files import Place, find_inputs
from itemwise.offline.job import Job
from itemwise.offline.reading import Source
from itemwise.offline.rows import Row, RowForm, Unread
from itemwise.offline.writing import writer_for
from itemwise.progress import Meter, ProgressFn

WINDOW_ROWS = 16_384
ScoreRows = Callable[[Sequence[Row], ProgressFn], list[dict[str, Any]]]  # as `RowScorer`


@dataclass(frozen=True)
class Task:
    """What a job over files does.

    Attributes:
        input: path or URL of a file, a folder or a pattern.
        output: path or URL of the file to write.
        form: of the rows.
        kept: columns of the input that the output repeats; None for all.
        window_rows: rows that are scored together and then kept.
        max_failed: rows that may have an error, over all runs of the job; None for any number.
        restart: throw away what there is of an unfinished job.
    """

    input: str
    output: str
    form: RowForm
    kept: Sequence[str] | None = None
    window_rows: int = WINDOW_ROWS
    max_failed: int | None = None
    restart: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a job that is finished.

    Attributes:
        num_rows: of the output.
        num_failed: of these, rows with an error.
        num_new: rows that this run scored.
        seconds: that this run took.
    """

    num_rows: int
    num_failed: int
    num_new: int
    seconds: float


class BatchRun:
    """A job over files: first `open`, then `run`.

    Raises:
        ConfigError: the files do not fit the task.
        BatchError: a file cannot be read.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._files = find_inputs(task.input)
        self._source = Source(self._files, task.form.input_columns or None, task.kept)
        self._output = Place.of(task.output)
        self._writer = writer_for(self._output, task.form, self._source)

    def open(self, settings: Mapping[str, Any]) -> Job:
        """The job, as far as it is.

        Args:
            settings: what the scores depend on beside the task, as JSON values; a job goes on with
                the same alone.

        Raises:
            ConfigError: the output is there already, or parts are of another job.
            BatchError: another process is at the job, or its folder cannot be written.
        """
        facts = {
            "input": [file.facts() for file in self._files],
            **asdict(self._task.form),
            "kept": self._task.kept,
            **settings,
        }
        job = Job(self._output, facts)
        job.open(restart=self._task.restart)
        return job

    def run(self, job: Job, score: ScoreRows) -> Outcome:
        """Scores what is left of the rows and writes the whole output.

        Args:
            job: from `open`.
            score: makes the results of a window's rows.

        Raises:
            BatchError: a file cannot be read or written, or too many rows failed.
            ItemwiseError: the engine failed.
        """
        started, start = time.perf_counter(), job.num_rows
        meter = Meter("rows", start)
        size, begin = max(1, self._source.num_bytes), 0.0
        self._check_failed(job)
        for window in self._source.windows(start, self._task.window_rows):
            if self._source.kept is None:
                window = replace(window, rows=[*map(self._free, window.rows)])
            if job.num_rows == start:
                begin = max(0.0, window.position - window.num_bytes) if start else 0.0
                meter = Meter("rows", start, begin / size)
            on_progress = partial(_show, meter, job.num_rows, begin / size, window.position / size)
            results = score(window.rows, on_progress)
            num_failed = sum(row[self._task.form.columns[2]] is not None for row in results)
            job.add(len(results), num_failed, self._writer.part(window, results))
            begin = window.position
            self._check_failed(job)
            del window, results  # before the next one is read
        meter.close()
        job.finish(self._writer)
        seconds = time.perf_counter() - started
        return Outcome(job.num_rows, job.num_failed, job.num_rows - start, seconds)

    def _free(self, row: Row) -> Row:
        """The row, if it has no column of the results' names; else it fails, without these."""
        names = self._task.form.columns
        if isinstance(row, Unread) or not any(name in row for name in names):
            return row
        taken = next(name for name in names if name in row)
        error = f"column_taken: the row has a column `{taken}`, as the results have; use `--prefix`"
        return Unread(error, {name: row[name] for name in row if name not in names})

    def _check_failed(self, job: Job) -> None:
        most = self._task.max_failed
        if most is not None and job.num_failed > most:
            raise BatchError(
                f"{job.num_failed} of {job.num_rows} rows failed, at most {most} may "
                f"(`--max-errors`); `{self._output.shown}.parts` has their errors. Allow more to "
                "go on, or mend the input and begin anew with --restart"
            )


def _show(
    meter: Meter, before: int, begin: float, end: float, _: str, done: int, total: int
) -> None:
    """Shows how far a window is that covers the shares `begin` to `end` of the input."""
    meter.update(before + done, min(1.0, begin + (end - begin) * done / total))
