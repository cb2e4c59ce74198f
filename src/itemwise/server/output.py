"""Lines to stdout and stderr that can be closed, full, or read by nobody: the server goes on."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading

MAX_LINES = 10_000  # that wait for a slow reader; further ones are lost


class Lines:
    """Writes lines to a file descriptor, on a thread of its own.

    A line is lost if too many wait, or if the descriptor takes none: the disk is full, the reader
    has left. How many were lost is written once lines get through again.
    """

    def __init__(self, descriptor: int, max_lines: int = MAX_LINES) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[str | threading.Event] = queue.Queue(max_lines)
        self._num_lost = 0
        threading.Thread(target=self._run, name="itemwise-output", daemon=True).start()

    def write(self, line: str) -> None:
        """Queues a line; returns at once."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._num_lost += 1

    def flush(self, seconds: float) -> None:
        """Returns when all lines were written, or the time is over."""
        done = threading.Event()
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(done)
            done.wait(seconds)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            lost = self._num_lost
            if lost:
                line = f"({lost} lines were lost before this one.)\n{line}"
            if self._write(f"{line}\n".encode(errors="backslashreplace")):
                self._num_lost -= lost
            else:
                self._num_lost += 1

    def _write(self, data: bytes) -> bool:
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            return False
        return True


def keep_standard_streams() -> None:
    """Opens the null device in place of standard streams that are closed.

    Otherwise the next socket or file would get the number of one, and what a library prints would
    go into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
