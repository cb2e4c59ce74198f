"""Progress of long work. Light: imports no JAX."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ProgressFn = Callable[[str, int, int], None]  # what, done, total
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


def silent(what: str, done: int, total: int) -> None:
    """Reports nothing."""
