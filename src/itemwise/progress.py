"""Progress of long work. Light: imports no JAX."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ProgressFn = Callable[[str, int, int], None]  # what, done, total
TERMINAL_S, PLAIN_S = 0.2, 10.0  # between two states of a `Meter`
PLAIN_LINES = 10  # lines that a long job prints if there is no terminal


@contextmanager
def progress() -> Iterator[ProgressFn]:
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

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield update


def _plain_line(what: str, done: int, total: int) -> None:
    if done == total or done % max(1, total // PLAIN_LINES) == 0:
        sys.stderr.write(f"{what} {done}/{total}\n")


def say(line: str, file: TextIO | None = None) -> None:
    """Writes a line and flushes it; to stdout by default."""
    file = file or sys.stdout
    file.write(line + "\n")
    file.flush()


class Meter:
    """Shows how far a long job is, at what rate, and how long it still takes, on stderr.

    On a terminal it is one line that changes, elsewhere a line every ten seconds.

    Args:
        unit: what is counted.
        num_done: how many there were before this run.
        share: of the job that was done before, 0 to 1.
    """

    def __init__(self, unit: str, num_done: int = 0, share: float = 0.0) -> None:
        self._unit = unit
        self._first = num_done
        self._first_share = share
        self._started = time.perf_counter()
        self._shown_at = self._started
        self._on_terminal = sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self._started

    def update(self, num_done: int, share: float) -> None:
        """Shows the state, unless that was done a moment ago.

        Args:
            num_done: how many are done.
            share: of the job that is done, 0 to 1.
        """
        now = time.perf_counter()
        if now - self._shown_at < (TERMINAL_S if self._on_terminal else PLAIN_S):
            return
        self._shown_at = now
        line = self.line(num_done, share)
        sys.stderr.write(f"\r{line}\x1b[K" if self._on_terminal else f"{line}\n")
        sys.stderr.flush()

    def line(self, num_done: int, share: float) -> str:
        """The state in words."""
        rate = (num_done - self._first) / max(self.seconds, 1e-9)
        text = f"{num_done:,} {self._unit} ({share:.0%}), {rate:,.0f} {self._unit}/s"
        gained = share - self._first_share
        if gained <= 0:
            return text
        left_s = self.seconds * max(0.0, 1 - share) / gained
        return f"{text}, {_time(left_s)} left"

    def close(self) -> None:
        """Ends the line on a terminal."""
        if self._on_terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def silent(what: str, done: int, total: int) -> None:
    """Reports nothing."""
