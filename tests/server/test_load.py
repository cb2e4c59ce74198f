"""Deadlines, clients who leave, limits, and what logs, headers and metrics say of them."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from itemwise.config import ServerConfig
from itemwise.server.logs import JsonFormatter
from itemwise.server.record import Record
from tests.server.fakes import (
    GOOD,
    GOOD_SCORES,
    HOLD,
    RAISE,
    WAIT_S,
    FakeScorer,
    assert_error,
    counters,
    get,
    post,
    running_server,
    samples,
    wait_until,
)

CONFIG = ServerConfig(
    "org/fake-model",
    max_queued_requests=4,
    max_queued_tokens=60,
    max_request_tokens=40,
    max_request_labels=10,
)
LEFT = "itemwise_http_requests_total{code=client_closed_request,path=/v1/score,status=499}"


@pytest.fixture
def scorer() -> FakeScorer:
    return FakeScorer()


@pytest.fixture
def url(scorer: FakeScorer) -> Iterator[str]:
    with running_server(CONFIG, lambda: scorer) as made:
        wait_until(lambda: get(f"{made}/health").status_code == 200)
        try:
            yield made
        finally:
            scorer.go.set()


def send_by_hand(url: str, fields: dict[str, Any]) -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port), WAIT_S)
    body = json.dumps(fields).encode()
    head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_request_out_of_time_is_504_at_once(url: str, scorer: FakeScorer) -> None:
    with ThreadPoolExecutor(1) as pool:
        runs = pool.submit(post, url, {**GOOD, "query": [HOLD]})
        assert scorer.holding.wait(WAIT_S)
        started = time.perf_counter()
        response = post(url, {**GOOD, "timeout_s": 0.05})
        assert time.perf_counter() - started < WAIT_S / 2, "it waited for the engine's step"
        error = assert_error(response, 504, "deadline_exceeded")
        assert error["type"] == "timeout_error"
        assert "scores" not in response.json()
        scorer.go.set()
        assert runs.result(WAIT_S).status_code == 200
    assert counters(url)["expired"] == 1
    assert all(GOOD["query"][0] not in turn for turn in scorer.engine.turns)


def test_client_who_leaves_a_running_request_frees_the_engine(url: str, scorer: FakeScorer) -> None:
    scorer.engine.step_tokens = 1  # many steps, and the first one waits
    scorer.engine.gate.clear()
    with send_by_hand(url, GOOD):
        wait_until(lambda: counters(url)["running"] == 1)
    wait_until(lambda: counters(url)["cancelled"] == 1)
    scorer.engine.gate.set()
    wait_until(lambda: scorer.engine.closed == [GOOD["query"][0]])
    assert scorer.engine.turns.count([GOOD["query"][0]]) == 1, "its remaining rows ran"
    assert post(url, GOOD).json()["scores"] == GOOD_SCORES
    assert samples(url)[LEFT] == 1


def test_text_of_a_client_who_leaves_is_given_up(
    url: str, scorer: FakeScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def long_text(_: object, between_pieces: Callable[[], None], /) -> None:
        begun.set()
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            between_pieces()
            time.sleep(0.001)

    with monkeypatch.context() as patch:
        patch.setattr(scorer, "prepare_call", long_text)
        with send_by_hand(url, GOOD):
            assert begun.wait(WAIT_S)
        wait_until(lambda: samples(url).get(LEFT) == 1)


def test_lower_priority_number_overtakes(url: str, scorer: FakeScorer) -> None:
    scorer.engine.step_tokens = 6
    with ThreadPoolExecutor(3) as pool:
        runs = pool.submit(post, url, {**GOOD, "query": [HOLD]})
        assert scorer.holding.wait(WAIT_S)
        later = pool.submit(post, url, {**GOOD, "query": [5], "priority": 1})
        wait_until(lambda: counters(url)["queued"] == 1)
        sooner = pool.submit(post, url, {**GOOD, "query": [6], "priority": -1})
        wait_until(lambda: counters(url)["queued"] == 2)
        scorer.go.set()
        for future in (runs, later, sooner):
            assert future.result(WAIT_S).status_code == 200
    first_turns = [turn[0] for turn in scorer.engine.turns if turn]
    assert first_turns.index(6) < first_turns.index(5)


@pytest.mark.parametrize(
    ("code", "param", "fields"),
    [
        ("too_many_tokens", "items", {"items": [[3] * 10] * 4}),
        ("too_many_labels", "label_token_ids", {"label_token_ids": [1, 2, 3, 4]}),
        ("too_many_labels", "labels", {"query": "w1", "items": ["w2"] * 6, "labels": ["w3", "w4"]}),
    ],
)
def test_request_beyond_a_limit(url: str, code: str, param: str, fields: dict[str, Any]) -> None:
    body = {**GOOD, **fields}
    if "labels" in fields:
        del body["label_token_ids"]
    assert assert_error(post(url, body), 400, code)["param"] == param


def test_queued_tokens_are_bounded(url: str, scorer: FakeScorer) -> None:
    scorer.engine.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        runs = pool.submit(post, url, {**GOOD, "items": [[3] * 35]})
        wait_until(lambda: counters(url)["running"] == 1)
        response = post(url, {**GOOD, "items": [[3] * 30]})
        assert "max_queued_tokens" in assert_error(response, 429, "queue_full")["message"]
        assert int(response.headers["retry-after"]) >= 1
        scorer.engine.gate.set()
        assert runs.result(WAIT_S).status_code == 200


def test_connections_are_bounded() -> None:
    config = ServerConfig("org/fake-model", max_connections=3)
    with running_server(config, FakeScorer) as url:
        wait_until(lambda: get(f"{url}/health").status_code == 200)
        parts = urlsplit(url)
        busy = [socket.create_connection((parts.hostname, parts.port), WAIT_S) for _ in range(3)]
        for each in busy:
            each.sendall(b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
        wait_until(lambda: get(f"{url}/v1/models").status_code == 503)
        response = get(f"{url}/v1/models")
        assert_error(response, 503, "too_many_connections")
        assert response.headers["connection"] == "close"
        assert get(f"{url}/health").status_code == get(f"{url}/live").status_code == 200
        busy[0].close()
        wait_until(lambda: get(f"{url}/v1/models").status_code == 200)
        for each in busy:
            each.close()


def test_server_timing_names_every_stage(url: str) -> None:
    response = post(url, GOOD)
    found = {
        part.split(";dur=")[0]: float(part.split(";dur=")[1])
        for part in response.headers["server-timing"].split(", ")
    }
    stages = ["read", "tokenize", "queue", "prefill", "extend", "encode"]
    assert list(found) == [*stages, "total"]
    assert sum(found[name] for name in stages) <= found["total"] * 1.05
    assert "total" in get(f"{url}/nowhere").headers["server-timing"]


def test_metrics_count_requests_by_outcome(url: str, scorer: FakeScorer) -> None:
    post(url, GOOD)
    post(url, {**GOOD, "query": []})
    post(url, {**GOOD, "query": [RAISE]})
    get(f"{url}/no/such/path/{'x' * 50}")
    found = samples(url)

    def requests(status: int, code: str, path: str = "/v1/score") -> float:
        return found[f"itemwise_http_requests_total{{code={code},path={path},status={status}}}"]

    assert requests(200, "ok") == 1
    assert requests(400, "empty_query") == 1
    assert requests(500, "internal_error") == 1
    assert requests(404, "not_found", "other") == 1
    assert found["itemwise_scores_ended_total{outcome=finished}"] == 1
    assert found["itemwise_scores_ended_total{outcome=failed}"] == 1
    assert found["itemwise_request_seconds_count"] == 1
    assert found["itemwise_stage_seconds_count{stage=queue}"] == 1
    assert found["itemwise_step_seconds_count"] == len(scorer.engine.turns)
    assert found["itemwise_state{state=ready}"] == 1
    assert found["itemwise_self_check_passed"] == 1


def test_every_request_received_is_answered(url: str) -> None:
    for _ in range(3):
        post(url, GOOD)
        post(url, {})
    found = samples(url)
    received = sum(v for k, v in found.items() if k.startswith("itemwise_http_requests_received_t"))
    answered = sum(v for k, v in found.items() if k.startswith("itemwise_http_requests_total"))
    assert received - answered == found["itemwise_http_requests_active"] == 1  # this very one


def test_metrics_before_the_model_is_loaded() -> None:
    def load() -> FakeScorer:
        raise RuntimeError("no")

    with running_server(CONFIG, load) as url:
        wait_until(lambda: samples(url)["itemwise_state{state=failed}"] == 1)
        assert get(f"{url}/live").status_code == 503


def test_access_log_is_one_line(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "itemwise.access"):
        post(url, GOOD, {"X-Request-Id": "mine-7"})
        get(f"{url}/health")
        get(f"{url}/a%0Ab")
        wait_until(lambda: len(caplog.records) >= 2)
    first, second = (record.getMessage() for record in caplog.records)
    assert re.search(r"request_id=mine-7 method=POST path='/v1/score' status=200 code=ok", first)
    assert "items=3" in first
    assert "queue_ms=" in first
    assert "\n" not in second


def test_json_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    from itemwise.server.logs import log_access

    record = Record("id-1", "POST", "/v1/score", status=200, items=3, stages={"queue": 0.25})
    with caplog.at_level(logging.INFO, "itemwise.access"):
        log_access(record)
    line = json.loads(JsonFormatter().format(caplog.records[0]))
    assert (line["request_id"], line["status"], line["queue_ms"]) == ("id-1", 200, 250.0)
    assert line["level"] == "info"
    try:
        raise ValueError("planted")
    except ValueError:
        logging.getLogger("itemwise.access").exception("bad", extra={"request_id": "id-2"})
    line = json.loads(JsonFormatter().format(caplog.records[1]))
    assert line["request_id"] == "id-2"
    assert "planted" in line["exception"]


@pytest.mark.parametrize(
    ("level", "logged"), [("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")]
)
def test_log_level_is_the_least_serious_that_is_logged(level: str, logged: str) -> None:
    # In a process of its own, whose log it may set up.
    code = f"""
import logging
from itemwise.server.logs import set_up_logs
from itemwise.server.output import Lines
lines = Lines(2)
set_up_logs("json", lines, "{level}")
ours = logging.getLogger("itemwise.test")
for log in ours.debug, ours.info, ours.warning, ours.error:
    log(log.__name__[0])
logging.getLogger("jax").info("noise")
lines.flush(10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = map(json.loads, done.stderr.splitlines())
    assert "".join(line["message"] for line in lines) == logged
