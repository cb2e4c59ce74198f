"""Runs scripts that start Ray, and ends every process of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

START_S = 300  # on a busy machine; ten seconds on an idle one once programs are compiled
END_S = 60
HERE = Path(__file__).parent


class Cluster:
    """A running cluster.

    Attributes:
        url: of its HTTP API.
    """

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.url = url
        self._process = process
        self._log = log

    def serve(self, arguments: dict[str, Any]) -> None:
        """Starts an application, or replaces the one before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        # Ray writes lines of workers to the standard output of the driver.
        deadline = time.monotonic() + START_S
        for line in self._process.stdout:
            if line == "serving\n":
                return
            assert time.monotonic() < deadline, "the application did not start in time"
        raise AssertionError(f"the cluster ended: {self._log.read_text()[-3000:]}")

    def processes(self) -> dict[int, str]:
        """Names of all its processes by their number; they share the session of `cluster.py`."""
        return of_session(self._process.pid)

    def replicas(self) -> list[int]:
        """Processes of engines."""
        return [pid for pid, name in self.processes().items() if "default:Engine" in name]

    def memory(self) -> int:
        """Bytes of memory of all its processes, shared ones counted once."""
        total = 0
        for pid in self.processes():
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:  # ended meanwhile
                continue
            total += next(int(ln.split()[1]) << 10 for ln in rollup.splitlines() if "Pss:" in ln)
        return total


def of_session(session: int) -> dict[int, str]:
    """Command lines of all processes of a session."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(after_name[3]) == session and after_name[0] != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # ended meanwhile
            continue
    return found


@contextmanager
def started(script: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A script, called with a new folder and arguments; and that folder, which has its `log`.

    Afterwards none of its processes is left, whatever happened.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: it is in paths of sockets
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",  # else Ray writes a token into the user's home
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        "JAX_PLATFORMS": "cpu",
    }
    with (folder / "log").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, HERE / script, folder, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
    try:
        yield process, folder
    finally:
        try:
            process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        deadline = time.monotonic() + END_S
        while (left := of_session(process.pid)) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_cluster(arguments: dict[str, Any]) -> Iterator[Cluster]:
    """A cluster that serves an application."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with started("cluster.py", str(port)) as (process, folder):
        cluster = Cluster(process, f"http://127.0.0.1:{port}", folder / "log")
        cluster.serve(arguments)
        yield cluster


def in_session(script: str, argument: str, prepare: Callable[[Path], None], result: str) -> str:
    """The text of a file that a script leaves in its folder, which `prepare` has filled before."""
    with started(script, argument) as (process, folder):
        prepare(folder)
        process.communicate("go\n", START_S)
        assert process.returncode == 0, (folder / "log").read_text()[-3000:]
        return (folder / result).read_text()
