"""Text over HTTP, and `/metrics`, of a real engine with the demo model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from itemwise.config import ServerConfig
from itemwise.scorer import Scorer
from itemwise.types import RankedItem
from tests.server.fakes import get, post, running_server, samples, send, wait_until

TEXT: dict[str, Any] = {"query": "desk lamps", "items": ["Tea kettle", "Brass lamp for the desk"]}
REQUESTS: list[dict[str, Any]] = [
    {**TEXT, "apply_template": True, "apply_softmax": True},
    {**TEXT, "apply_template": True},
    {**TEXT, "labels": [" yes", " no"], "apply_softmax": True},
    {**TEXT, "labels": [[" yes"], [" no", " yes"]]},
]


@pytest.fixture(scope="module")
def scorer(small: dict[str, Any]) -> Scorer:
    return Scorer.from_pretrained(**small)


@pytest.fixture(scope="module")
def expected(scorer: Scorer) -> list[list[bytes]]:
    """Bits of each request's rows; made before the server's thread has the engine to itself."""
    return [[row.tobytes() for row in scorer.score(**fields).scores] for fields in REQUESTS]


@pytest.fixture(scope="module")
def ranking(scorer: Scorer) -> list[RankedItem]:
    return scorer.rank(TEXT["query"], TEXT["items"])


@pytest.fixture(scope="module")
def url(scorer: Scorer, expected: list[list[bytes]], ranking: list[RankedItem]) -> Iterator[str]:
    with running_server(ServerConfig(), lambda: scorer) as made:
        wait_until(lambda: get(f"{made}/health").status_code == 200)
        yield made


def test_text_over_http_has_the_bits_of_the_scorer(url: str, expected: list[list[bytes]]) -> None:
    for fields, rows in zip(REQUESTS, expected, strict=True):
        response = post(url, fields)
        assert response.status_code == 200, response.text
        body = response.json()
        assert [np.array(row, np.float32).tobytes() for row in body["scores"]] == rows
        assert body["model"] == "itemwise/demo"


def test_rankings_over_http_have_the_bits_of_the_scorer(
    url: str, ranking: list[RankedItem]
) -> None:
    body = {"query": TEXT["query"], "documents": TEXT["items"]}
    results = send("POST", f"{url}/v2/rerank", json=body).json()["results"]
    expected = [{"index": item.index, "relevance_score": item.score} for item in ranking]
    assert results == expected
    texts = send("POST", f"{url}/rerank", json={"query": TEXT["query"], "texts": TEXT["items"]})
    assert [row["score"] for row in texts.json()] == [item.score for item in ranking]
    pairs = {"text_1": TEXT["query"], "text_2": TEXT["items"], "activation": False}
    margins = {row["index"]: row["score"] for row in post(url, pairs).json()["data"]}
    assert margins == {item.index: item.margin for item in ranking}


def test_log_probabilities_are_the_logs_of_shares_of_the_vocabulary(url: str) -> None:
    fields = {**TEXT, "labels": [" yes", " no"]}
    shares = post(url, fields).json()["scores"]
    both = post(url, {**fields, "apply_softmax": True, "return_token_logprobs": True}).json()
    assert np.allclose(np.exp(both["token_logprobs"]), shares, rtol=1e-5)
    assert both["scores"] == post(url, {**fields, "apply_softmax": True}).json()["scores"]


def test_items_without_a_query_have_the_same_scores_in_any_company(url: str) -> None:
    items, labels = [[259, 1095], [796] * 40, [7]], [315, 286]
    fields = {"query": [], "label_token_ids": labels, "apply_softmax": True}
    together = post(url, {**fields, "items": items}).json()["scores"]
    for item, row in zip(items, together, strict=True):
        assert post(url, {**fields, "items": [item]}).json()["scores"] == [row]


def test_first_request_of_the_readme_ranks_the_lamp_first(url: str) -> None:
    kettle, lamp = (scores[0] for scores in post(url, REQUESTS[0]).json()["scores"])
    assert kettle < 0.5 < lamp


def test_metrics_of_the_engine_are_those_of_its_info(url: str, scorer: Scorer) -> None:
    post(url, REQUESTS[0])
    found, info = samples(url), scorer.info()
    pages = info["pages"]
    expected = {
        "itemwise_steps_total": info["steps"],
        "itemwise_failed_steps_total": info["failed_steps"],
        "itemwise_items_total": info["scored_items"],
        "itemwise_computed_tokens_total": info["computed_tokens"],
        "itemwise_shared_tokens_total": info["shared_tokens"],
        "itemwise_page_hits_total": pages["hits"],
        "itemwise_page_misses_total": pages["misses"],
        "itemwise_page_evictions_total": pages["evictions"],
        "itemwise_compiles_total": info["compiled_since_ready"],
        "itemwise_self_check_passed": 1,
        "itemwise_pages{state=used}": pages["total"] - pages["available"],
        "itemwise_pages{state=available}": pages["available"],
        "itemwise_pages{state=cached}": pages["cached"],
    }
    assert {name: found.get(name) for name in expected} == expected
    assert min(found["itemwise_steps_total"], found["itemwise_page_misses_total"]) > 0
