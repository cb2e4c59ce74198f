"""Jobs over files: killed anywhere they go on, and the output is that of an undisturbed job."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itemwise.errors import BatchError, ConfigError
from itemwise.offline.files import Place
from itemwise.offline.rows import RowForm
from itemwise.offline.run import BatchRun, Task
from tests.offline.common import PAIRS, fake_score, pairs, run, write_jsonl

ROOT = Path(__file__).parents[2]
NAMES = ("out.jsonl", "out.csv.gz", "out.parquet", "out.jsonl.zst")


class Killed(BaseException):
    """Ends a job in the middle, as a kill does."""


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "in.jsonl", pairs(100))


@contextmanager
def failing_writes(monkeypatch: pytest.MonkeyPatch, after: int, error: Any) -> Iterator[None]:
    """The write number `after`, counted from 0, puts half of its bytes down and raises."""
    count = 0
    written = Place.written

    @contextmanager
    def half(place: Place) -> Iterator[IO[bytes]]:
        nonlocal count
        count += 1
        fails = count > after
        with written(place) as file:
            if fails:
                file.write(b"half")
                raise error
            yield file

    with monkeypatch.context() as patch:
        patch.setattr(Place, "written", half)
        yield


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("failed_write", range(6))
def test_job_killed_at_any_write_goes_on_to_the_same_bytes(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch, name: str, failed_write: int
) -> None:
    # The writes are the job's file, four parts, and the output.
    kept: dict[str, Any] = {"kept": ["id", "query"], "window_rows": 25}
    run(source, str(tmp_path / f"whole-{name}"), **kept)
    output = tmp_path / name
    with failing_writes(monkeypatch, failed_write, Killed), pytest.raises(Killed):
        run(source, str(output), **kept)
    assert not output.exists()
    outcome = run(source, str(output), **kept)
    assert outcome.num_rows == 100
    assert outcome.num_new == 100 - 25 * max(0, failed_write - 1)
    assert output.read_bytes() == (tmp_path / f"whole-{name}").read_bytes()
    assert sorted(os.listdir(tmp_path)) == sorted(["in.jsonl", name, f"whole-{name}"])


KILLED_SCRIPT = """
import sys, time
from tests.offline.common import PAIRS, fake_score
from itemwise.offline.run import BatchRun, Task
source, output = sys.argv[1:]
work = BatchRun(Task(source, output, PAIRS, window_rows=50))
def score(rows, shown):
    time.sleep(0.01)
    return fake_score(rows, shown)
print("ready", flush=True)
work.run(work.open({}), score)
"""


@pytest.mark.slow
def test_process_killed_five_times_leaves_the_same_bytes(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", pairs(5000))
    run(source, str(tmp_path / "whole.jsonl"))
    output = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", KILLED_SCRIPT, source, str(output)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    rest = random.Random(time.time_ns())
    for _ in range(5):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(rest.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert not output.exists()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("failed_write", [1, 3, 5])
def test_full_disk_is_a_clear_error_and_loses_nothing(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch, failed_write: int
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    output = tmp_path / "out.jsonl"
    with (
        failing_writes(monkeypatch, failed_write, full),
        pytest.raises(BatchError, match=r"No space left on device; run the same command again"),
    ):
        run(source, str(output), window_rows=25)
    left = [name for _, _, names in os.walk(tmp_path) for name in names]
    assert not [name for name in left if name.endswith(".aside")]  # the disk got its room back
    assert run(source, str(output), window_rows=25).num_rows == 100


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=st.integers(1, 120), killed_window=st.integers(1, 120), num_rows=st.integers(0, 60))
def test_output_does_not_depend_on_windows_or_stops(
    tmp_path_factory: pytest.TempPathFactory, window: int, killed_window: int, num_rows: int
) -> None:
    folder = tmp_path_factory.mktemp("windows")
    rows = pairs(num_rows)
    source = write_jsonl(folder / "in.jsonl", rows)
    output = folder / "out.jsonl"
    work = BatchRun(Task(source, str(output), PAIRS, window_rows=killed_window))
    job = work.open({})
    first = next(iter(work._source.windows(0, killed_window)), None)
    if first is not None:  # one window, then the end
        results = fake_score(first.rows)
        job.add(len(results), 0, work._writer.part(first, results))
    job.close()
    run(source, str(output), window_rows=window)
    written = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    assert written == [{**r, **s} for r, s in zip(rows, fake_score(rows), strict=True)]


def test_other_settings_or_another_input_are_refused(tmp_path: Path, source: str) -> None:
    output = str(tmp_path / "out.jsonl")

    def stop(settings: dict[str, Any], form: RowForm = PAIRS) -> None:
        BatchRun(Task(source, output, form)).open(settings).close()

    stop({"dtype": "float32"})
    stop({"dtype": "float32"})
    with pytest.raises(ConfigError, match='`dtype` was "float32", is "bfloat16"') as caught:
        stop({"dtype": "bfloat16"})
    assert "--restart" in str(caught.value)
    with pytest.raises(ConfigError, match="`fields` was {}, is"):
        stop({"dtype": "float32"}, RowForm(None, "query", "item", {"instruction": "x"}))
    os.utime(source, ns=(1, 1))
    with pytest.raises(ConfigError, match="`input` was"):
        stop({"dtype": "float32"})
    assert run(source, output, restart=True).num_rows == 100


def test_finished_output_is_not_written_over(tmp_path: Path, source: str) -> None:
    output = str(tmp_path / "out.jsonl")
    run(source, output)
    with pytest.raises(ConfigError, match="is there already"):
        run(source, output)


def test_folder_of_parts_with_a_strange_file_is_left_alone(tmp_path: Path, source: str) -> None:
    (tmp_path / "out.jsonl.parts").mkdir()
    (tmp_path / "out.jsonl.parts" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"has `thesis.tex`, which is no part"):
        run(source, str(tmp_path / "out.jsonl"), restart=True)
    assert (tmp_path / "out.jsonl.parts" / "thesis.tex").read_text() == "years of work"


def test_two_processes_cannot_be_at_one_job(tmp_path: Path, source: str) -> None:
    task = Task(source, str(tmp_path / "out.jsonl"), PAIRS)
    job = BatchRun(task).open({})
    with pytest.raises(BatchError, match="another process is at the job"):
        BatchRun(task).open({})
    job.close()
    BatchRun(task).open({}).close()


def test_too_many_failed_rows_stop_the_job_until_more_may_fail(tmp_path: Path) -> None:
    rows = pairs(40)
    for i in (3, 12, 13):
        del rows[i]["item"]
    source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    for _ in range(2):
        with pytest.raises(BatchError, match="3 of 20 rows failed, at most 2 may"):
            run(source, str(output), window_rows=10, max_failed=2)
    outcome = run(source, str(output), window_rows=10, max_failed=3)
    assert (outcome.num_failed, outcome.num_new) == (3, 20)
    written = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    assert [i for i, row in enumerate(written) if row["error"]] == [3, 12, 13]


def test_remote_files_are_read_and_written(source: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/jobs/a.jsonl", Path(source).read_bytes())
    memory.pipe("/jobs/b.jsonl", Path(source).read_bytes())
    try:
        work = BatchRun(
            Task("memory://jobs/*.jsonl", "memory://jobs/out.parquet", PAIRS, ["id"], 30)
        )
        with pytest.raises(Killed):
            work.run(work.open({}), _killed_at(3))
        assert not memory.exists("/jobs/out.parquet")
        outcome = run("memory://jobs/*.jsonl", "memory://jobs/out.parquet", kept=["id"])
        assert (outcome.num_rows, outcome.num_new) == (200, 200 - 60)
        with memory.open("/jobs/out.parquet") as file:
            table = pq.read_table(file)
        assert table["id"].to_pylist() == [str(i % 100) for i in range(200)]
        assert not memory.exists("/jobs/out.parquet.parts")
    finally:
        memory.rm("/jobs", recursive=True)


def _killed_at(window: int) -> Any:
    calls = 0

    def score(rows: Any, shown: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == window:
            raise Killed
        return fake_score(rows, shown)

    return score
