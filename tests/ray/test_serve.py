"""Two engines of the demo model on a Ray cluster of this machine, behind one HTTP API."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any

import httpx
import numpy as np
import pytest

from itemwise import Scorer
from tests.clients.rank_with import CLIENTS, DOCUMENTS, QUERY
from tests.clients.test_clients import NO_MESSAGE, PYTHON, SCRIPT
from tests.conftest import DEMO_POOL
from tests.ray.clusters import Cluster, of_session, running_cluster, started

pytestmark = pytest.mark.slow

MAX_MEMORY = 4 << 30
WAIT_S = 180
NUM_CLIENTS = 16
SETTINGS: dict[str, Any] = {"kv_cache_bytes": DEMO_POOL}


@pytest.fixture(scope="module")
def settings(cache_folder: str) -> dict[str, Any]:
    return {**SETTINGS, "compilation_cache_dir": cache_folder}


@pytest.fixture(scope="module")
def scorer(settings: dict[str, Any]) -> Scorer:
    """One engine, whose programs the cluster's engines load."""
    return Scorer.from_pretrained(**settings)


@pytest.fixture(scope="module")
def cluster(scorer: Scorer, settings: dict[str, Any]) -> Iterator[Cluster]:
    with running_cluster({**settings, "min_replicas": 2}) as made:
        yield made


@pytest.fixture
def client(cluster: Cluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.url, timeout=WAIT_S, verify=False) as made:
        yield made


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


def scored(client: httpx.Client, fields: dict[str, Any]) -> Any:
    response = client.post("/v1/score", json=fields)
    assert response.status_code == 200, response.text
    return response.json()["scores"]


def expected(scorer: Scorer, fields: dict[str, Any]) -> Any:
    """The scores of one engine, as JSON has them."""
    result = scorer.run([scorer.prepare(fields)])[0]
    return [[float(str(value)) for value in row] for row in np.asarray(result.scores)]


def scheduled(client: httpx.Client, name: str) -> list[int]:
    """A counter of each engine's scheduler."""
    replicas = client.get("/server_info").json()["replicas"]
    return [each["scheduler"][name] for each in replicas.values()]


def body(number: int, num_items: int = 6) -> dict[str, Any]:
    items = [f"lamp {i} of {number}" for i in range(num_items)]
    query = f"desk lamps, catalogue {number} " * 10
    return {"query": query, "items": items, "label_token_ids": [5, 6], "apply_softmax": True}


def test_bits_are_those_of_one_engine(client: httpx.Client, scorer: Scorer) -> None:
    for number in range(12):
        fields = body(number)
        assert scored(client, fields) == expected(scorer, fields)
    ranked = client.post("/v2/rerank", json={"query": QUERY, "documents": DOCUMENTS}).json()
    found = [(each["index"], each["relevance_score"]) for each in ranked["results"]]
    assert found == [(each.index, each.score) for each in scorer.rank(QUERY, DOCUMENTS)]
    assert min(scheduled(client, "finished")) > 0


def test_requests_of_a_query_go_to_one_engine(client: httpx.Client) -> None:
    before = scheduled(client, "received")
    for _ in range(10):
        scored(client, body(100))
    received = [b - a for a, b in zip(before, scheduled(client, "received"), strict=True)]
    assert sorted(received) == [0, 10]


@pytest.mark.skipif(not PYTHON.exists(), reason="no clients; see `make clients`")
@pytest.mark.parametrize("name", CLIENTS)
def test_client_ranks_and_reads_an_error(name: str, cluster: Cluster, scorer: Scorer) -> None:
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": ""}
    command = [str(PYTHON), str(SCRIPT), name, cluster.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert answer["scores"] == [item.score for item in scorer.rank(QUERY, DOCUMENTS)]
    assert name in NO_MESSAGE or "tokens" in answer["error"], answer["error"]


def test_deadline_and_disconnect_reach_the_engine(client: httpx.Client, cluster: Cluster) -> None:
    # Many seconds of work, so that neither is over before it is given up.
    items = [[(7 * i + j) % 900 + 1 for j in range(100)] for i in range(20_000)]
    long = {"query": [1, 2, 3], "items": items, "label_token_ids": [5]}

    def given_up() -> int:
        return sum(scheduled(client, "cancelled") + scheduled(client, "expired"))

    before = given_up()
    response = client.post("/v1/score", json={**long, "timeout_s": 4})
    assert response.status_code == 504, response.text
    assert response.json()["error"]["code"] == "deadline_exceeded"
    wait_until(lambda: given_up() == before + 1)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{cluster.url}/v1/score", json=long, timeout=5, verify=False)
    wait_until(lambda: given_up() == before + 2)
    wait_until(lambda: sum(scheduled(client, "running")) == 0)


class Load:
    """Clients that send one request after the other, and check each answer."""

    def __init__(self, url: str, scorer: Scorer) -> None:
        self._url = url
        self._bodies = [body(300 + number, 40) for number in range(20)]
        self._expected = [expected(scorer, fields) for fields in self._bodies]
        self._stop = threading.Event()
        self._clients: list[Future[None]] = []
        self.answers = count()
        self.num_answers = 0

    def _send(self, place: int) -> None:
        with httpx.Client(base_url=self._url, timeout=WAIT_S, verify=False) as client:
            while not self._stop.is_set():
                place = (place + 7) % len(self._bodies)
                assert scored(client, self._bodies[place]) == self._expected[place]
                self.num_answers = next(self.answers)

    def during(self, act: Callable[[], None]) -> None:
        """Runs `act` under load; then waits for 100 more answers, and all that are under way."""
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            self._clients = [pool.submit(self._send, place) for place in range(NUM_CLIENTS)]
            try:
                self.wait_for_more(100)
                act()
                self.wait_for_more(100)
            finally:
                self._stop.set()
        for each in self._clients:
            each.result()

    def wait_for_more(self, number: int) -> None:
        """Returns after so many more answers, or when a client ended."""
        wanted = self.num_answers + number
        wait_until(lambda: self.num_answers >= wanted or any(each.done() for each in self._clients))


def stop_and_kill(process: int, load: Load) -> None:
    """Kills an engine after a while in which requests may come to it and none is answered."""
    os.kill(process, signal.SIGSTOP)
    load.wait_for_more(30)
    os.kill(process, signal.SIGKILL)


def test_a_killed_engine_costs_no_answer(
    cluster: Cluster, client: httpx.Client, scorer: Scorer
) -> None:
    def retries() -> int:
        number: int = client.get("/server_info").json()["front"]["retries"]
        return number

    before = retries()
    for _ in range(5):  # until one had requests that the front door sends again
        killed, load = cluster.replicas()[0], Load(cluster.url, scorer)
        load.during(functools.partial(stop_and_kill, killed, load))
        wait_until(lambda: len(client.get("/server_info").json()["replicas"]) == 2)
        assert killed not in cluster.replicas()
        if retries() > before:
            break
    assert retries() > before
    for number in range(12):
        assert scored(client, body(number)) == expected(scorer, body(number))


def test_engines_that_are_replaced_finish_their_requests(
    cluster: Cluster, client: httpx.Client, scorer: Scorer, settings: dict[str, Any]
) -> None:
    """Serve starts the new application beside the old one, which it drains."""
    before = set(cluster.replicas())
    load = Load(cluster.url, scorer)
    load.during(lambda: cluster.serve({**settings, "min_replicas": 1}))
    wait_until(lambda: len(cluster.replicas()) == 1)
    assert not before & set(cluster.replicas())
    assert client.get("/server_info").json()["front"]["retries"] == 0


def test_memory_is_bounded(cluster: Cluster) -> None:
    assert 0 < cluster.memory() < MAX_MEMORY


def test_nothing_stays_behind_a_failure(settings: dict[str, Any]) -> None:
    sessions: list[int] = []

    def fail_while_serving() -> None:
        with started("cluster.py", "0") as (process, folder):
            sessions.append(process.pid)
            wait_until(lambda: len(of_session(process.pid)) > 3)
            assert folder.exists()
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        fail_while_serving()
    assert of_session(sessions[0]) == {}
