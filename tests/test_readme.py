"""Every command of the README does what it says."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.server.fakes import get

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
TIMEOUT_S = 900
# Shortens a run of the whole validation; it still starts both servers and checks everything.
QUICK = "--rounds 3 --warmup 1 --sweep none --item-counts 32"


def commands() -> list[str]:
    """The commands in order; one in quotes may have several lines."""
    found: list[str] = []
    for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.M | re.S):
        begun = ""
        for line in block.splitlines():
            begun += line
            try:
                words = shlex.split(begun, comments=True)
            except ValueError:  # a quote is still open
                begun += "\n"
                continue
            if words:
                found.append(begun)
            begun = ""
        assert not begun, block
    return found


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


class Terminal:
    """Runs commands one after the other in an empty folder; a server goes on until the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._server: subprocess.Popen[str] | None = None
        (folder / "itemwise").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m itemwise "$@"\n')
        (folder / "itemwise").chmod(0o755)
        path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}

    def run(self, command: str, cwd: Path | None = None) -> str:
        """What a command prints; fails if its status does."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=cwd or self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def serve(self, command: str) -> None:
        """Starts a server on a port of its own, and waits until it is ready."""
        self.close()
        self.port = free_port()
        command = re.sub(r"--port \d+", "", command.partition("#")[0])
        self._server = subprocess.Popen(
            ["bash", "-c", f"exec {command} --port {self.port}"],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout is not None
        assert any(line.startswith("Ready") for line in self._server.stdout)

    def close(self) -> None:
        """Ends the server, if there is one."""
        if self._server is not None:
            self._server.terminate()
            assert self._server.wait(TIMEOUT_S) == 0
            assert self._server.stdout is not None
            self._server.stdout.close()
            self._server = None


def make_demo(terminal: Terminal, command: str) -> None:
    # `-o`: what is installed is what is tested, even if a file is newer.
    made = terminal.run(command.replace("make", "make -o .venv/.base-installed", 1), ROOT)
    assert "26 items scored together and one by one: the same bits" in made


def serve(terminal: Terminal, command: str) -> None:
    terminal.serve(command.replace(".venv/bin/itemwise", "itemwise"))
    assert "<title>Itemwise</title>" in get(f"http://127.0.0.1:{terminal.port}/").text


def curl(terminal: Terminal, command: str) -> None:
    answer: dict[str, Any] = json.loads(
        terminal.run(command.replace("curl ", "curl -sf ").replace(":30000", f":{terminal.port}"))
    )
    assert answer.get("scores") or answer["results"]


def make_venv(terminal: Terminal, command: str) -> None:
    terminal.run(f'{command} && test "$VIRTUAL_ENV" -ef .venv && pip --version')


def install(terminal: Terminal, command: str) -> None:
    # Everything is there already, as the README's own `make demo` installs it; pip reads the
    # project, its extras and the constraints, and finds that they fit together.
    tag = "py311" if sys.version_info < (3, 12) else "py312"
    dry = command.replace("pip install", f"{sys.executable} -m pip install --dry-run -q")
    terminal.run(dry.replace("py311", tag), ROOT)


def rank(terminal: Terminal, command: str) -> None:
    lines = [line for line in terminal.run(command).splitlines() if re.search(r"\d\.\d{3}", line)]
    assert "Brass lamp for the desk" in lines[0]


def random_checkpoint(terminal: Terminal, command: str) -> None:
    terminal.run(command)
    assert (terminal.folder / "random-0.6b" / "config.json").exists()


def validate(terminal: Terminal, command: str) -> None:
    terminal.close()
    terminal.run(f"{command.partition('#')[0]} {QUICK} --output report")
    assert (terminal.folder / "report" / "index.html").exists()


RUNS = {
    r"make demo\b": make_demo,
    r"(\.venv/bin/)?itemwise serve\b": serve,
    r"curl localhost:30000/": curl,
    r"python3 -m venv \.venv && ": make_venv,
    r"pip install -c constraints/py311\.txt '?\.": install,
    r"itemwise rank ": rank,
    r"itemwise checkpoint random ": random_checkpoint,
    r"itemwise validate\b": validate,
}


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("command", commands())
def test_it_is_known_how_to_run_each_command(command: str) -> None:
    assert len([pattern for pattern in RUNS if re.match(pattern, command)]) == 1


@pytest.mark.slow
def test_commands_do_what_they_say(terminal: Terminal) -> None:
    for command in commands():
        for pattern, run in RUNS.items():
            if re.match(pattern, command):
                run(terminal, command)


@pytest.mark.slow
def test_python_does_what_it_says(tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    # Models of the Hub are not there; the demo model takes their place.
    code = code.replace("Qwen/Qwen3-0.6B", "itemwise/demo") + "\nprint(result.scores.shape)\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    first, *_, shape = done.stdout.splitlines()
    assert first.startswith("1 Brass lamp for the desk 0.9")
    assert shape == "(2, 2)"


def test_pictures_are_there_and_small() -> None:
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', TEXT)
    assert len(pictures) == 3
    for picture in pictures:
        assert 0 < (ROOT / picture).stat().st_size < 100_000
        assert "http" not in picture
