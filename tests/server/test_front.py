"""The front door with replicas in this process: fake scorers that can be held, or end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from itemwise.config import ServerConfig
from itemwise.dialects.table import by_path, dialect_of
from itemwise.errors import QueueFullError
from itemwise.request.calls import ScoreCall
from itemwise.request.decide.call import DecideCall
from itemwise.request.decide.questions import YesNo
from itemwise.request.ranking import RankCall
from itemwise.server.app import app_of
from itemwise.server.front import MAX_TRIES, _look, front_app, shared_key
from itemwise.server.process import listen
from itemwise.server.replica import Answer, Ask, ReplicaLostError, answer
from itemwise.server.service import Service
from tests.server.fakes import (
    GOOD,
    GOOD_SCORES,
    HOLD,
    RAISE,
    WAIT_S,
    FakeScorer,
    assert_error,
    get,
    post,
    running_server,
    samples,
    send,
    wait_until,
)


def _same(scorer: FakeScorer) -> FakeScorer:
    return scorer


def _is_ready(service: Service) -> bool:
    return service.state == "ready"


class Local:
    """Replicas in this process; the next one asked is the first of `order`."""

    def __init__(self, count: int = 2, config: ServerConfig | None = None) -> None:
        self.scorers = {f"replica-{i}": FakeScorer() for i in range(count)}
        self.services = {
            name: Service(config or ServerConfig("fake"), partial(_same, scorer))
            for name, scorer in self.scorers.items()
        }
        self.apps = {name: app_of(service) for name, service in self.services.items()}
        self.order = list(self.apps)
        self.asked: list[tuple[str, str]] = []
        self.lost = 0
        self.full = False
        for service in self.services.values():
            service.start()
            wait_until(partial(_is_ready, service))

    async def ask(self, ask: Ask, key: str) -> Answer:
        self.asked.append((ask.path, key))
        if self.full:
            raise QueueFullError("full", 1.5)
        if self.lost:
            self.lost -= 1
            raise ReplicaLostError
        return await answer(self.apps[self.order[0]], ask)

    async def ask_all(self, ask: Ask) -> list[tuple[str, Answer]]:
        return [(name, await answer(app, ask)) for name, app in self.apps.items()]

    def close(self) -> None:
        for scorer in self.scorers.values():
            scorer.go.set()
        for service in self.services.values():
            service.drain()


@contextmanager
def front(replicas: Local, config: ServerConfig | None = None) -> Iterator[str]:
    """The front door behind real HTTP, on a thread; gives its URL."""
    app = front_app(config or ServerConfig("fake"), replicas)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", loop="asyncio"))
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        replicas.close()
        thread.join(WAIT_S)
        assert not thread.is_alive()


@pytest.fixture
def replicas() -> Local:
    return Local()


@pytest.fixture
def url(replicas: Local) -> Iterator[str]:
    with front(replicas) as made:
        yield made


SAMPLES: dict[str, dict[str, Any]] = {
    "/v1/score": GOOD,
    "/generative_scoring": GOOD,
    "/score": {"text_1": "w3", "text_2": ["w4", "w5"]},
    "/rerank": {"query": "w3", "documents": ["w4", "w5"]},
    "/nowhere": {},
}


@pytest.mark.parametrize("path", SAMPLES)
@pytest.mark.parametrize("change", [{}, {"query": 5, "text_1": 5}, {"model": "other"}])
def test_answers_are_those_of_one_server(path: str, change: dict[str, Any], url: str) -> None:
    """Status, body and headers, for good bodies and for bad ones."""
    body = {**SAMPLES[path], **change}
    with running_server(ServerConfig("fake"), FakeScorer) as single:
        wait_until(lambda: get(f"{single}/health").status_code == 200)
        answers = [send("POST", base + path, json=body) for base in (single, url)]
    one, other = ({**each.json(), "id": 0, "created": 0} for each in answers)
    assert one == other
    assert answers[0].status_code == answers[1].status_code
    # `running_server` closes connections in its own way.
    names = [set(each.headers.keys()) - {"connection"} for each in answers]
    assert names[0] == names[1]
    stages = [
        {part.split(";")[0] for part in each.headers["server-timing"].split(", ")}
        for each in answers
    ]
    assert stages[0] | {"read"} == stages[1] | {"read"}


def test_a_request_keeps_its_id(url: str) -> None:
    response = post(url, GOOD, headers={"X-Request-Id": "mine"})
    assert response.headers.get_list("x-request-id") == ["mine"]


def test_head_and_cors_and_keys_are_at_the_front(replicas: Local) -> None:
    config = ServerConfig("fake", api_key="secret", allowed_origins="http://here")
    with front(replicas, config) as url:
        assert_error(post(url, GOOD), 401, "invalid_api_key")
        assert replicas.asked == []
        headers = {"Authorization": "Bearer secret", "Origin": "http://here"}
        found = post(url, GOOD, headers)
        assert found.json()["scores"] == GOOD_SCORES
        assert found.headers["access-control-allow-origin"] == "http://here"
        assert send("HEAD", f"{url}/health").status_code == 200


def test_a_lost_request_is_asked_again(replicas: Local, url: str) -> None:
    replicas.lost = 2
    assert post(url, GOOD).json()["scores"] == GOOD_SCORES
    assert samples(url)["itemwise_front_retries_total{reason=lost}"] == 2
    assert get(f"{url}/server_info").json()["front"]["retries"] == 2


def test_a_request_that_ends_replicas_is_given_up(replicas: Local, url: str) -> None:
    replicas.lost = MAX_TRIES + 1
    assert_error(post(url, GOOD), 503, "unhealthy")
    assert replicas.lost == 1


def test_another_replica_answers_for_one_that_is_broken(
    replicas: Local, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas.services["replica-0"].failure = RuntimeError("planted")
    asking = replicas.ask

    async def ask_other(ask: Ask, key: str) -> Answer:
        found = await asking(ask, key)
        replicas.order.reverse()
        return found

    monkeypatch.setattr(replicas, "ask", ask_other)
    assert post(url, GOOD).json()["scores"] == GOOD_SCORES
    assert samples(url)["itemwise_front_retries_total{reason=unhealthy}"] == 1
    (_, first), (_, second) = [each for each in replicas.asked if each[0] == "/v1/score"]
    assert first
    assert not second


def test_a_failure_of_the_request_itself_is_not_repeated(replicas: Local, url: str) -> None:
    body = {**GOOD, "query": [RAISE]}
    assert_error(post(url, body), 500, "internal_error")
    assert len(replicas.asked) == 1


def test_a_full_cluster_says_when_to_come_again(replicas: Local, url: str) -> None:
    replicas.full = True
    response = post(url, GOOD)
    assert_error(response, 429, "queue_full")
    assert response.headers["retry-after"] == "2"


def cancelled(replicas: Local) -> int:
    counts = [each.scheduler.counters() for each in replicas.services.values() if each.scheduler]
    return sum(each.cancelled for each in counts)


def test_a_deadline_ends_the_request_at_its_replica(replicas: Local, url: str) -> None:
    held = {**GOOD, "query": [HOLD]}
    assert_error(post(url, {**held, "timeout_s": 0.3}), 504, "deadline_exceeded")
    wait_until(lambda: cancelled(replicas) == 1)


def test_a_client_that_leaves_ends_the_request_at_its_replica(replicas: Local, url: str) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/score", json={**GOOD, "query": [HOLD]}, timeout=0.5, verify=False)
    wait_until(lambda: cancelled(replicas) == 1)


def test_metrics_have_those_of_all_replicas(replicas: Local, url: str) -> None:
    for order in (["replica-0"], ["replica-1"], ["replica-1"]):
        replicas.order = order
        post(url, GOOD)
    found = samples(url)
    received = [found[f"itemwise_scores_received_total{{replica=replica-{i}}}"] for i in (0, 1)]
    assert received == [1, 2]
    assert found["itemwise_front_requests_total{code=ok,status=200}"] == 3


def test_flush_reaches_all_replicas(replicas: Local, url: str) -> None:
    assert send("POST", f"{url}/flush_cache").text == "Cache flushed.\n"
    replicas.services["replica-1"].failure = RuntimeError("planted")
    assert send("POST", f"{url}/flush_cache").status_code == 503


def test_health_asks_a_replica_and_live_does_not(replicas: Local, url: str) -> None:
    assert get(f"{url}/health").status_code == 200
    replicas.lost = 1
    assert_error(get(f"{url}/health"), 503, "not_ready")
    assert get(f"{url}/live").status_code == 200


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (ScoreCall({"query": "lamp"}), ScoreCall({"query": "lamp", "items": ["x"]}), True),
        (ScoreCall({"query": "lamp"}), RankCall("lamp", ["x"]), True),
        (ScoreCall({"query": "lamp"}), ScoreCall({"query": "lamps"}), False),
        (ScoreCall({"query": [1, 2]}), ScoreCall({"query": np.array([1, 2])}), True),
        (ScoreCall({"query": [1, 2]}), ScoreCall({"query": [1, 3]}), False),
        (DecideCall({"a": [1]}, {}), DecideCall({"a": [1]}, {"q": YesNo()}), True),
        (DecideCall({"a": [1]}, {}), DecideCall({"a": [2]}, {}), False),
        (DecideCall("lamp", {}), ScoreCall({"query": "lamp"}), True),
    ],
)
def test_key_stands_for_the_query(first: Any, second: Any, same: bool) -> None:
    assert shared_key(first)
    assert (shared_key(first) == shared_key(second)) is same


@pytest.mark.parametrize(
    "call",
    [
        None,
        ScoreCall({}),
        ScoreCall({"query": ""}),
        ScoreCall({"query": "lamp", "item_first": True}),
        ScoreCall({"query": [1 << 40]}),
        ScoreCall({"query": [True]}),
        ScoreCall({"query": {"a": 1}}),
        RankCall(["a", "b"], ["x", "y"]),
        DecideCall(None, {}),
        DecideCall(["\ud800"], {}),
    ],
)
def test_nothing_shared_has_no_key(call: Any) -> None:
    assert shared_key(call) == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(["/v1/score", "/rerank", "/score", "/v1/decisions"]),
    st.dictionaries(
        st.sampled_from(
            ["query", "items", "documents", "text_1", "text_2", "item_first", "state", "questions"]
        ),
        JSON,
    ),
)
def test_no_body_breaks_the_search_for_its_key(path: str, body: dict[str, Any]) -> None:
    raw = bytearray(json.dumps(body).encode())
    scope = {"type": "http", "headers": [], "path": path}
    route = _look(ServerConfig("fake"), scope, path, raw)
    assert route.most_s == ServerConfig().max_timeout_s
    assert dialect_of(path, body) in by_path()[path]


def test_cancelled_answer_cancels_the_request(replicas: Local) -> None:
    async def ask_and_leave() -> None:
        body = b'{"query": [%d], "items": [[3]], "label_token_ids": [7]}' % HOLD
        asked = asyncio.create_task(
            answer(replicas.apps["replica-0"], Ask("POST", "/v1/score", body=body))
        )
        await asyncio.to_thread(replicas.scorers["replica-0"].holding.wait, WAIT_S)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(ask_and_leave())
    assert cancelled(replicas) == 1
    replicas.close()


def test_cancelled_answer_stops_the_tokenising(
    replicas: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, ended = threading.Event(), threading.Event()

    def prepare(_: Any, check_wanted: Any) -> Any:
        started.set()
        try:
            while True:
                check_wanted()
                time.sleep(0.01)
        finally:
            ended.set()

    monkeypatch.setattr(replicas.services["replica-0"], "prepare", prepare)

    async def ask_and_leave() -> None:
        ask = Ask("POST", "/v1/score", body=json.dumps(GOOD).encode())
        asked = asyncio.create_task(answer(replicas.apps["replica-0"], ask))
        await asyncio.to_thread(started.wait, WAIT_S)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(ask_and_leave())
    assert ended.wait(WAIT_S)
    replicas.close()
