"""The server as a process: its lines, signals and exit status."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from itemwise.engine.scheduler import LAST_STEP_S
from itemwise.errors import ConfigError
from itemwise.server.process import EXIT_S, REPEAT_S, SLOW_CLIENT_S, listen
from tests.server.fakes import (
    GOOD,
    GOOD_SCORES,
    HOLD,
    LOSE,
    WAIT_S,
    assert_error,
    counters,
    get,
    post,
    send,
    wait_until,
)

ROOT = Path(__file__).parents[2]
FAKE = """
import sys
from pathlib import Path
from itemwise.config import ServerConfig
from itemwise.server.process import serve
from tests.server.fakes import FakeScorer
config = ServerConfig("org/fake-model", port=0, drain_timeout_s=float(sys.argv[2]))
sys.exit(serve(config, lambda: FakeScorer(Path(sys.argv[1]))))
"""
SLOW_TO_LOAD = """
import sys, time
from itemwise.config import ServerConfig
from itemwise.server.process import serve
sys.exit(serve(ServerConfig("org/fake-model", port=0), lambda: time.sleep(600)))
"""


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "JAX_PLATFORMS": "cpu"}
    made = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with made:
        try:
            yield made
        finally:
            made.kill()


def line(made: subprocess.Popen[str]) -> str:
    assert made.stdout is not None
    return made.stdout.readline().rstrip("\n")


def listening_url(made: subprocess.Popen[str]) -> str:
    words = line(made).split()
    assert words[:4] == ["Itemwise", words[1], "listening", "on"]
    return words[4]


@contextmanager
def held_server(
    tmp_path: Path, drain_timeout_s: float = 60
) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """A ready process; requests with HOLD run while the file exists."""
    hold_file = tmp_path / "hold"
    hold_file.touch()
    with process("-c", FAKE, str(hold_file), str(drain_timeout_s)) as made:
        url = listening_url(made)
        assert "self-check passed" in line(made)
        assert line(made).startswith(f"  curl {url}/v1/score -d '")
        yield made, url, hold_file


def received(url: str) -> int:
    """Score requests whose head has come."""
    found = re.search(r'_received_total{path="/v1/score"} (\d+)', get(f"{url}/metrics").text)
    return int(found[1]) if found else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_finishes_what_was_taken_and_refuses_the_rest(
    number: signal.Signals, tmp_path: Path
) -> None:
    with held_server(tmp_path) as (made, url, hold_file), ThreadPoolExecutor(2) as pool:
        runs = pool.submit(post, url, {**GOOD, "query": [HOLD]})
        wait_until(lambda: counters(url)["running"] == 1)
        waits = pool.submit(post, url, GOOD)
        wait_until(lambda: counters(url)["queued"] == 1)
        made.send_signal(number)
        wait_until(lambda: get(f"{url}/health").status_code == 503)
        assert_error(post(url, GOOD), 503, "shutting_down")
        assert_error(get(f"{url}/health"), 503, "shutting_down")
        assert get(f"{url}/live").status_code == 200
        assert not runs.done()
        hold_file.unlink()
        assert runs.result(WAIT_S).status_code == 200
        assert waits.result(WAIT_S).json()["scores"] == GOOD_SCORES
        assert made.wait(WAIT_S) == 0


def test_drain_ends_at_its_timeout(tmp_path: Path) -> None:
    with held_server(tmp_path, 2) as (made, url, _), ThreadPoolExecutor(2) as pool:
        runs = pool.submit(post, url, {**GOOD, "query": [HOLD]})
        wait_until(lambda: counters(url)["running"] == 1)
        waits = pool.submit(post, url, GOOD)
        wait_until(lambda: counters(url)["queued"] == 1)
        made.terminate()
        signalled = time.monotonic()
        for refused in (runs, waits):
            assert_error(refused.result(WAIT_S), 503, "shutting_down")
        assert made.wait(WAIT_S) == 0
        # The step hangs and nobody else is slow, so this is all there is to wait for, and slack.
        assert time.monotonic() - signalled < 2 + LAST_STEP_S + 2


@pytest.mark.slow
def test_exit_takes_no_longer_than_supervisors_are_told(tmp_path: Path) -> None:
    with held_server(tmp_path, 2) as (made, url, _), ThreadPoolExecutor(1) as pool:
        pool.submit(post, url, {**GOOD, "query": [HOLD]})
        wait_until(lambda: counters(url)["running"] == 1)
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port), WAIT_S) as slow:
            slow.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
            wait_until(lambda: received(url) == 2)
            made.terminate()
            signalled = time.monotonic()
            assert made.wait(WAIT_S) == 0
            took = time.monotonic() - signalled
    assert 2 + LAST_STEP_S + SLOW_CLIENT_S <= took <= 2 + EXIT_S


def test_lost_engine_ends_the_process_with_an_error(tmp_path: Path) -> None:
    with held_server(tmp_path) as (made, url, _):
        assert_error(post(url, {**GOOD, "query": [LOSE]}), 503, "unhealthy")
        assert made.wait(WAIT_S) not in (0, None)


def test_second_interrupt_exits_at_once(tmp_path: Path) -> None:
    with held_server(tmp_path) as (made, url, _), ThreadPoolExecutor(1) as pool:
        runs = pool.submit(post, url, {**GOOD, "query": [HOLD]})
        wait_until(lambda: counters(url)["running"] == 1)
        made.send_signal(signal.SIGINT)
        assert "Shutting down" in line(made)
        made.send_signal(signal.SIGINT)
        assert made.wait(WAIT_S) == 130
        assert isinstance(runs.exception(WAIT_S), httpx.TransportError)


@pytest.mark.parametrize(
    ("second", "wait_s", "status"),
    [
        (signal.SIGTERM, REPEAT_S + 0.2, 128 + signal.SIGTERM),
        (signal.SIGHUP, 0.0, 128 + signal.SIGHUP),
    ],
)
def test_second_signal_exits_at_once(
    second: signal.Signals, wait_s: float, status: int, tmp_path: Path
) -> None:
    with held_server(tmp_path) as (made, url, _), ThreadPoolExecutor(1) as pool:
        pool.submit(_ignore_errors, url)
        wait_until(lambda: received(url) == 1)
        made.send_signal(signal.SIGTERM)
        assert line(made).startswith("Shutting down")
        time.sleep(wait_s)
        made.send_signal(second)
        assert made.wait(WAIT_S) == status


def test_signal_sent_twice_within_a_moment_is_one_signal(tmp_path: Path) -> None:
    with held_server(tmp_path) as (made, url, hold_file), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, url, {**GOOD, "query": [HOLD]})
        wait_until(lambda: received(url) == 1)
        made.send_signal(signal.SIGTERM)
        assert line(made).startswith("Shutting down")
        made.send_signal(signal.SIGTERM)
        hold_file.unlink()
        assert answer.result(WAIT_S).status_code == 200
        assert made.wait(WAIT_S) == 0


def _ignore_errors(url: str) -> None:
    with contextlib.suppress(httpx.HTTPError):
        post(url, {**GOOD, "query": [HOLD]})


@pytest.mark.parametrize("kind", ["reader left", "full", "stalled", "closed"])
def test_streams_that_take_no_lines_are_no_failure(kind: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    if kind == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), writer)
    if kind == "reader left":
        os.close(reader)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = FAKE.replace("port=0", f"port={port}")
    # A shell closes them: a fork of this process, with its threads, may hang.
    closing = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh"] if kind == "closed" else []
    made = subprocess.Popen(
        [*closing, sys.executable, "-c", source, str(tmp_path / "nothing"), "60"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "JAX_PLATFORMS": "cpu"},
        stdout=writer,
        stderr=writer,
    )
    os.close(writer)
    url = f"http://127.0.0.1:{port}"
    with made:
        try:
            wait_until(lambda: _is_ready(url))
            with httpx.Client(verify=False, timeout=WAIT_S) as client:
                for _ in range(800 if kind == "stalled" else 20):  # more than a pipe holds
                    assert client.get(f"{url}/nowhere").status_code == 404
            assert post(url, GOOD).json()["scores"] == GOOD_SCORES
            made.send_signal(signal.SIGTERM)
            assert made.wait(WAIT_S) == 0
        finally:
            made.kill()
            if kind != "reader left":
                os.close(reader)


@pytest.mark.parametrize(
    ("settings", "loud"),
    [
        ('host="0.0.0.0"', True),
        ('host="0.0.0.0", api_key="x"', False),
        ('host="127.0.0.1"', False),
    ],
)
def test_listening_for_everybody_without_a_key_is_said(
    settings: str, loud: bool, tmp_path: Path
) -> None:
    source = FAKE.replace("port=0", f"port=0, {settings}")
    with process("-c", source, str(tmp_path / "nothing"), "60") as made:
        assert "listening on" in line(made)
        made.send_signal(signal.SIGTERM)
        assert made.wait(WAIT_S) == 0
        assert made.stderr is not None
        assert ("LISTENING WITHOUT AN API KEY" in made.stderr.read()) is loud


def _is_ready(url: str) -> bool:
    try:
        return get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def test_printed_command_scores(tmp_path: Path) -> None:
    hold_file = tmp_path / "none"
    with process("-c", FAKE, str(hold_file), "60") as made:
        url = listening_url(made)
        line(made)
        body = line(made).split(" -d ")[1].strip("'")
        response = send("POST", f"{url}/v1/score", content=body)
        assert response.status_code == 200
        assert post(url, GOOD).json()["scores"] == GOOD_SCORES
        made.terminate()
        assert made.wait(WAIT_S) == 0


def test_signal_while_loading_exits_cleanly() -> None:
    with process("-c", SLOW_TO_LOAD) as made:
        url = listening_url(made)
        assert_error(get(f"{url}/health"), 503, "not_ready")
        made.terminate()
        assert made.wait(WAIT_S) == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model-path", "./no-such-model"], "no-such-model"),
        (["--model-path", "x", "--kv-cache-bytes", "0"], "`kv_cache_bytes` is 0"),
        (["--model-path", "x", "--tp-size", "0"], "`tp_size` is 0"),
        (["--model-path", "x", "--host", "no.such.host.invalid"], "no.such.host.invalid"),
    ],
)
def test_wrong_setting_is_one_line_and_status_2(options: list[str], text: str) -> None:
    command = ["-m", "itemwise.launch_server", "--port", "0", *options]
    with process(*command) as made:
        _, err = made.communicate(timeout=60)
    assert made.returncode == 2
    (only,) = err.splitlines()
    assert only.startswith("Error: ")
    assert text in only


def test_taken_port_is_a_config_error() -> None:
    taken = listen("127.0.0.1", 0)  # which also listens, so that of two starts one fails here
    with taken, pytest.raises(ConfigError, match="in use"):
        listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_listen_takes_names_and_addresses(host: str) -> None:
    bound: Any = listen(host, 0)
    with bound:
        assert isinstance(bound, socket.socket)
        assert bound.proto == socket.IPPROTO_TCP, "small packets would wait for each other"


@pytest.mark.slow
def test_killed_under_load_and_started_again_it_gives_the_same_bits(
    make_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, cache = str(make_checkpoint("tiny-qwen3")), str(tmp_path / "cache")
    command = ["-m", "itemwise", "serve", "--model-path", folder, "--compilation-cache-dir", cache]
    body = {"query": list(range(200)), "items": [[n] * 9 for n in range(40)]}
    body |= {"label_token_ids": [1, 2], "apply_softmax": False}

    def client(url: str) -> list[str]:
        """What came of each request, up to the first without an answer."""
        found = []
        for _ in range(1000):
            try:
                found.append(post(url, body).text.partition('"scores":')[2].partition("]]")[0])
            except httpx.TransportError:
                return found
        raise AssertionError("the server was not killed")

    scores: set[str] = set()
    for _ in range(2):
        with process(*command, "--port", "0") as made, ThreadPoolExecutor(4) as pool:
            url = listening_url(made)
            assert "self-check passed" in line(made)
            clients = [pool.submit(client, url) for _ in range(4)]
            wait_until(lambda url=url: counters(url)["finished"] >= 4)  # type: ignore[misc]
            made.kill()
            for each in clients:
                scores |= set(each.result(WAIT_S))
    assert len(scores) == 1
    assert all(path.stat().st_size for path in Path(cache).glob("*-cache"))
