"""Bits over real HTTP: eight clients at once get what each item gets alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from itemwise.config import ServerConfig
from itemwise.scorer import Scorer
from tests.conftest import VOCAB_SIZE
from tests.server.fakes import running_server, wait_until

CLIENTS = 8


@pytest.fixture(scope="module")
def url(make_checkpoint: Callable[[str], Path], small: dict[str, Any]) -> Iterator[str]:
    folder = str(make_checkpoint("tiny-qwen3"))
    scorer = Scorer.from_pretrained(folder, **small)
    with running_server(ServerConfig(model_path=folder), lambda: scorer) as url:
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 200)
        yield url


def score(client: httpx.Client, url: str, body: dict[str, Any]) -> list[list[float]]:
    response = client.post(f"{url}/v1/score", json=body, timeout=60)
    assert response.status_code == 200, response.text
    scores: list[list[float]] = response.json()["scores"]
    return scores


def test_eight_clients_get_the_bits_of_each_item_alone(url: str) -> None:
    rng = np.random.default_rng(0)
    queries = [rng.integers(0, VOCAB_SIZE, n).tolist() for n in (5, 40, 90)]
    items = [rng.integers(0, VOCAB_SIZE, n).tolist() for n in (1, 3, 20, 33, 64, 0)]
    labels = [3, 7, 11]

    def body(query: int, chosen: list[int]) -> dict[str, Any]:
        return {
            "query": queries[query],
            "items": [items[i] for i in chosen],
            "label_token_ids": labels,
            "apply_softmax": query == 1,
        }

    with httpx.Client() as client:
        alone = [
            [score(client, url, body(q, [i]))[0] for i in range(len(items))]
            for q in range(len(queries))
        ]

    def one_client(seed: int) -> None:
        mine = np.random.default_rng(seed)
        with httpx.Client() as client:
            for _ in range(6):
                query = int(mine.integers(len(queries)))
                chosen = mine.permutation(len(items))[: mine.integers(1, len(items) + 1)].tolist()
                found = score(client, url, body(query, chosen))
                assert found == [alone[query][i] for i in chosen]

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(one_client, range(CLIENTS)))


def test_nothing_compiles_once_healthy(url: str) -> None:
    body = {"query": [1, 2], "items": [[3]] * 50, "label_token_ids": list(range(20))}
    with httpx.Client() as client:
        score(client, url, body)
        score(client, url, {**body, "apply_softmax": True, "items": [[4] * 100, []]})
        info = client.get(f"{url}/server_info").json()["engine"]
    assert info["compiled_since_ready"] == 0
    assert info["self_check"]["status"] == "passed"
