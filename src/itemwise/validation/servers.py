"""Servers as child processes: started, waited for, and ended whatever happens."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import httpx

from itemwise.errors import EndpointError
from itemwise.progress import ProgressFn, silent

GRACE_S = 15.0  # from SIGTERM to SIGKILL
TAIL_LINES = 20
_POLL_S = 0.2


def free_port() -> int:
    """A port of the loopback address that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ChildServer:
    """A server in a child process with its own process group, used as a context manager.

    Args:
        arguments: of `python -m itemwise`, without host and port.
        log: file for its output.
        port: to listen on.
        health_timeout_s: maximum seconds until `GET /health` answers 200.
        api_key: that the server requires.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        port: int,
        *,
        health_timeout_s: float,
        api_key: str | None = None,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        address = ["--host", "127.0.0.1", "--port", str(port)]
        self.command = [sys.executable, "-m", "itemwise", *arguments, *address]
        self.log = log
        self._health_timeout_s = health_timeout_s
        self._api_key = api_key
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def shown_command(self) -> str:
        """The command as a user would type it."""
        return shlex.join(["python", *self.command[1:]])

    def __enter__(self) -> ChildServer:
        environment = dict(os.environ)
        # Settings of the user's own server are not for this one.
        for name in [name for name in environment if name.startswith("ITEMWISE_")]:
            del environment[name]
        if self._api_key is not None:
            environment["ITEMWISE_API_KEY"] = self._api_key
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # so that Ctrl-C reaches only us, and we end the group
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_healthy(self, on_progress: ProgressFn = silent) -> None:
        """Returns once `GET /health` answers 200.

        Raises:
            EndpointError: the process ended, or time is up; the message includes the end of its
                log.
        """
        assert self._process is not None
        start = time.monotonic()
        limit = int(self._health_timeout_s)
        reported = -1
        with httpx.Client(verify=False, trust_env=False, timeout=5) as client:
            while True:
                status = self._process.poll()
                if status is not None:
                    raise EndpointError(
                        f"the server ended with exit status {status} before it was healthy; its "
                        f"log, {self.log}, ends:\n{self.tail()}"
                    )
                with suppress(httpx.HTTPError):
                    if client.get(f"{self.url}/health").status_code == httpx.codes.OK:
                        return
                waited = time.monotonic() - start
                if waited > self._health_timeout_s:
                    raise EndpointError(
                        f"the server was not healthy after {self._health_timeout_s:g} s; raise "
                        f"--health-timeout. Its log, {self.log}, ends:\n{self.tail()}"
                    )
                if int(waited) != reported:
                    reported = int(waited)
                    on_progress("server start, seconds", reported, limit)
                time.sleep(_POLL_S)

    def stop(self) -> None:
        """Ends the process and its children: SIGTERM, then SIGKILL after a grace period."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            _signal_group(process, signal.SIGTERM)
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also if a second Ctrl-C interrupts the wait
            _signal_group(process, signal.SIGKILL)
            process.wait()

    def tail(self) -> str:
        """The last lines of the log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:]) or "  (the log is empty)"


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class _Terminated(SystemExit):
    """Ends the process with an exit status and, in result files, a reason."""

    def __str__(self) -> str:
        return "ended by SIGTERM"


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """Lets SIGTERM unwind the stack as Ctrl-C does, so that child servers end with us."""

    def unwind(number: int, _: FrameType | None) -> None:
        raise _Terminated(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
