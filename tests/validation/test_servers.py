"""Child servers: health, logs, and an end whatever happens. Stand-ins are small Python programs."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from itemwise.errors import EndpointError
from itemwise.validation import servers
from itemwise.validation.servers import ChildServer, free_port, sigterm_unwinds

SERVER = """
import http.server, os, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
given = os.environ.get
print("key", given("ITEMWISE_API_KEY"), "dtype", given("ITEMWISE_DTYPE"), flush=True)
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def child(folder: Path, program: str, *arguments: str, timeout_s: float = 20) -> ChildServer:
    port = free_port()
    server = ChildServer(
        ["serve"], folder / "server.log", port, health_timeout_s=timeout_s, api_key="k"
    )
    assert server.command[1:] == [
        "-m",
        "itemwise",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    assert server.shown_command.startswith("python -m itemwise serve")
    server.command = [sys.executable, "-c", program, str(port), *arguments]
    return server


def pid_of(server: ChildServer) -> int:
    assert server._process is not None
    return server._process.pid


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_server_is_waited_for_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITEMWISE_DTYPE", "float32")  # a setting of the caller's own server
    with child(tmp_path, SERVER) as server:
        server.wait_healthy()
        pid = pid_of(server)
    assert is_gone(pid)
    assert "key k dtype None" in (tmp_path / "server.log").read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_server_ends_with_whatever_ends_its_block(
    tmp_path: Path, error: type[BaseException]
) -> None:
    pid = 0

    def block() -> None:
        nonlocal pid
        with child(tmp_path, SERVER) as server:
            pid = pid_of(server)
            server.wait_healthy()
            raise error

    with pytest.raises(error):
        block()
    assert is_gone(pid)


def test_a_server_that_does_not_listen_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "GRACE_S", 0.3)
    with child(tmp_path, SERVER, "stubborn") as server:
        server.wait_healthy()
        pid = pid_of(server)
    assert is_gone(pid)


def test_a_server_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    program = "import sys; sys.exit('\\n'.join(f'line {i}' for i in range(50)))"
    with (
        child(tmp_path, program) as server,
        pytest.raises(EndpointError, match="exit status 1 before") as found,
    ):
        server.wait_healthy()
    assert "line 49" in str(found.value)
    assert "line 3\n" not in str(found.value)


def test_a_server_that_never_gets_healthy(tmp_path: Path) -> None:
    start = time.monotonic()
    with (
        child(tmp_path, "import time; time.sleep(60)", timeout_s=0.5) as server,
        pytest.raises(EndpointError, match=r"after 0.5 s; raise --health-timeout"),
    ):
        server.wait_healthy()
    assert time.monotonic() - start < 20


def test_sigterm_unwinds_the_stack() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def end_ourselves() -> None:
        with sigterm_unwinds():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(SystemExit) as ended:
        end_ourselves()
    assert (ended.value.code, str(ended.value)) == (143, "ended by SIGTERM")
    assert signal.getsignal(signal.SIGTERM) is before
