"""The API over real HTTP: answers, every error, and a server that outlives them all."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itemwise import __version__
from itemwise.config import ServerConfig
from itemwise.errors import CheckpointError, SelfCheckError
from itemwise.request.check import REQUEST_FIELDS
from itemwise.server.errors import STATUS_OF_CODE
from itemwise.server.service import AnyScorer, model_names
from itemwise.types import ScoreResult
from tests.engine.fake_core import FakeWork
from tests.server.fakes import (
    DELIMITER,
    GOOD,
    GOOD_SCORES,
    HOLD,
    NAN,
    RAISE,
    SECRET,
    VOCAB_SIZE,
    WAIT_S,
    FakeScorer,
    assert_error,
    counters,
    fake_score,
    get,
    post,
    running_server,
    send,
    wait_until,
)

CONFIG = ServerConfig("org/fake-model", max_queued_requests=2, max_body_bytes=20_000)
PLAIN_STATUSES = {400, 401, 404, 405, 408, 413, 415, 422, 429, 499, 500, 503, 504}
KEY = "päss-wörd"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(CONFIG, FakeScorer) as made:
        wait_until(lambda: get(f"{made}/health").status_code == 200)
        yield made


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    """A client; after each test the server must be well and score as before."""
    with httpx.Client(base_url=url, timeout=WAIT_S, verify=False) as made:
        yield made
        assert made.get("/health").json() == {"status": "ok"}
        assert made.post("/v1/score", json=GOOD).json()["scores"] == GOOD_SCORES


def test_scores_token_ids(client: httpx.Client) -> None:
    response = client.post("/v1/score", json={**GOOD, "stream": False})
    assert response.status_code == 200
    body = response.json()
    assert body["scores"] == GOOD_SCORES
    assert body["id"].startswith("score-")
    assert (body["object"], body["model"]) == ("scoring", "org/fake-model")
    assert body["usage"] == {"prompt_tokens": 6, "total_tokens": 6, "completion_tokens": 0}


def test_scores_text(client: httpx.Client) -> None:
    fields = {"query": "w5", "items": ["w6 w7", ""], "labels": ["w8"]}
    scores = client.post("/v1/score", json=fields).json()["scores"]
    assert scores == [[fake_score([0, 5], item, 8)] for item in ([6, 7], [])]


def test_scores_labels_that_differ_per_item(client: httpx.Client) -> None:
    fields = {**GOOD, "label_token_ids": [[7], [8, 9], []]}
    assert_error(client.post("/v1/score", json=fields), 400, "empty_label_token_ids")
    fields["label_token_ids"] = [[7], [8, 9], [7]]
    scores = client.post("/v1/score", json=fields).json()["scores"]
    assert [len(row) for row in scores] == [1, 2, 1]
    assert scores[1] == [fake_score([1, 2], [], label) for label in (8, 9)]


@pytest.mark.parametrize(("num_labels", "on_loop"), [(2, True), (900, False)])
def test_answers_of_many_scores_are_not_written_on_the_event_loop(
    client: httpx.Client, num_labels: int, on_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def result_and_place(work: FakeWork) -> ScoreResult:
        places.append(runs_on_an_event_loop())
        return result(work)

    places: list[bool] = []
    result = FakeWork.result
    monkeypatch.setattr(FakeWork, "result", result_and_place)
    labels = list(range(num_labels))
    response = client.post("/v1/score", json={**GOOD, "label_token_ids": labels})
    assert [len(row) for row in response.json()["scores"]] == [num_labels] * 3
    assert places == [on_loop]


def runs_on_an_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("model", ["org/fake-model", "fake-model", "default", None, ""])
def test_model_may_be_named(client: httpx.Client, model: str | None) -> None:
    assert client.post("/v1/score", json={**GOOD, "model": model}).status_code == 200


def test_model_names() -> None:
    config = ServerConfig("/data/org/net/", served_model_name="mine")
    assert model_names(config) == ("mine", "/data/org/net/", "org/net", "net", "default")
    assert model_names(ServerConfig("./net")) == ("net", "./net", "default")


def test_clients_do_not_learn_where_the_model_lies() -> None:
    path = "/secret/place/org/net"
    with running_server(ServerConfig(path), FakeScorer) as url:
        wait_until(lambda: get(f"{url}/health").status_code == 200)
        scored = post(url, {**GOOD, "model": path})  # who knows the path may send it
        assert (scored.status_code, scored.json()["model"]) == (200, "net")
        assert get(f"{url}/v1/models").json()["data"][0]["id"] == "net"
        assert get(f"{url}/server_info").json()["server"]["model_path"] == "net"
        unknown = post(url, {**GOOD, "model": "other"})
        assert "'net', 'org/net', 'default'" in unknown.json()["message"]
        pages = [get(url + path) for path in ("/v1/models", "/server_info", "/metrics")]
        assert all("secret" not in answer.text for answer in (scored, unknown, *pages))


def test_served_name_is_shown_whatever_it_is() -> None:
    config = ServerConfig("/secret/net", served_model_name="/my/net")
    with running_server(config, FakeScorer) as url:
        wait_until(lambda: get(f"{url}/health").status_code == 200)
        assert post(url, GOOD).json()["model"] == "/my/net"
        assert "one of '/my/net'" in post(url, {**GOOD, "model": "other"}).json()["message"]


ERRORS = [
    # status, code, changed fields
    (400, "empty_query", {"query": None}),
    (400, "empty_query", {"query": []}),
    (400, "invalid_query_type", {"query": 5}),
    (400, "missing_items", {"items": None}),
    (400, "invalid_items_type", {"items": 5}),
    (400, "mixed_input_types", {"items": "abc"}),
    (400, "mixed_input_types", {"items": ["a"]}),
    (400, "invalid_truncate", {"truncate": "yes"}),
    (400, "unsupported_field", {"item_embed_overrides": [[[1.0]]]}),
    (400, "missing_label_token_ids", {"label_token_ids": None}),
    (400, "empty_label_token_ids", {"label_token_ids": []}),
    (400, "invalid_label_token_ids_length", {"label_token_ids": [[7], [8]]}),
    (400, "invalid_labels_type", {"label_token_ids": None, "labels": "x"}),
    (400, "conflicting_labels", {"labels": ["x"]}),
    (400, "duplicate_labels", {"label_token_ids": [7, 7]}),
    (400, "invalid_token_id_type", {"query": [1, True]}),
    (400, "invalid_apply_softmax_type", {"apply_softmax": "yes"}),
    (400, "invalid_item_first_type", {"item_first": 0}),
    (400, "invalid_temperature", {"temperature": 0}),
    (400, "invalid_chunk_size", {"chunk_size": -1}),
    (400, "invalid_priority", {"priority": 1.5}),
    (400, "invalid_priority", {"priority": 2**31}),
    (400, "invalid_priority", {"priority": True}),
    (400, "invalid_timeout_s", {"timeout_s": 0}),
    (400, "invalid_timeout_s", {"timeout_s": "1"}),
    (400, "too_many_items", {"items": [[3]] * 9}),
    (400, "sequence_too_long", {"items": [[3] * 62]}),
    (400, "delimiter_in_input", {"items": [[DELIMITER]]}),
    (400, "model_not_found", {"model": "other"}),
    (400, "model_not_found", {"model": 3}),
    (422, "token_id_negative", {"query": [-1]}),
    (422, "token_id_exceeds_vocab", {"items": [[VOCAB_SIZE]]}),
    (422, "token_id_exceeds_vocab", {"label_token_ids": [10**30]}),
]


@pytest.mark.parametrize(("status", "code", "fields"), ERRORS)
def test_wrong_request_has_its_code(
    client: httpx.Client, status: int, code: str, fields: dict[str, Any]
) -> None:
    # httpx writes integers beyond 64 bits as Python's json does: in digits.
    error = assert_error(client.post("/v1/score", json={**GOOD, **fields}), status, code)
    assert error["type"] == "invalid_request_error"
    assert error["param"] in {*fields, "label_token_ids", "labels", "items", "query"}


def test_unknown_model_is_told_which_names_would_do(client: httpx.Client) -> None:
    response = client.post("/v1/score", json={**GOOD, "model": "x" * 5000})
    message = assert_error(response, 400, "model_not_found")["message"]
    assert "'org/fake-model', 'fake-model', 'default'" in message
    assert len(message) < 300


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b"null", b"\xff", b'{"query": NaN}', b"[" * 5000, b'{"a":"\\ud800"}'],
)
def test_body_that_is_no_json_object(client: httpx.Client, body: bytes) -> None:
    assert_error(client.post("/v1/score", content=body), 400, "invalid_json")


def test_text_is_given_up_when_its_deadline_passes(client: httpx.Client) -> None:
    fields = {"query": "w5", "items": ["w6"], "labels": ["w8"], "timeout_s": 1e-9}
    error = assert_error(client.post("/v1/score", json=fields), 504, "deadline_exceeded")
    assert "was not tokenised within 1e-09 s" in error["message"]


def test_body_with_half_a_character_names_its_place(client: httpx.Client) -> None:
    body = b'{"query": "a", "items": ["b", "lamp \\ud83d"], "labels": ["w8"]}'
    error = assert_error(client.post("/v1/score", content=body), 400, "invalid_json")
    assert "`items[1]` has a lone surrogate" in error["message"]
    assert error["param"] == "items"


def test_long_body_is_refused_by_its_declared_length(client: httpx.Client) -> None:
    response = client.post("/v1/score", content=b" " * 20_001)
    assert "20000 bytes" in assert_error(response, 413, "body_too_large")["message"]


def test_long_body_is_refused_without_a_declared_length(client: httpx.Client) -> None:
    response = client.post("/v1/score", content=iter([b" " * 1000] * 300))
    assert response.request.headers["transfer-encoding"] == "chunked"
    assert_error(response, 413, "body_too_large")


def test_body_of_the_longest_length_is_read(client: httpx.Client) -> None:
    body = json.dumps(GOOD).encode().ljust(20_000)
    assert client.post("/v1/score", content=body).json()["scores"] == GOOD_SCORES
    pieces = iter([body[:7], body[7:]])
    assert client.post("/v1/score", content=pieces).json()["scores"] == GOOD_SCORES


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/v1/score/", 404, "not_found"),
        ("GET", "/v1/score", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
    ],
)
def test_wrong_path_or_method(
    client: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)
    assert_error(response, status, code)
    assert ("allow" in response.headers) is (status == 405)


def test_item_without_a_number_is_named(client: httpx.Client) -> None:
    response = client.post("/v1/score", json={**GOOD, "query": [NAN]})
    assert "`items[2]`" in assert_error(response, 422, "score_not_finite")["message"]


def test_failure_shows_an_id_and_no_cause(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "itemwise.server"):
        response = client.post(
            "/v1/score", json={**GOOD, "query": [RAISE]}, headers={"X-Request-Id": "mine-1"}
        )
    message = assert_error(response, 500, "internal_error")["message"]
    assert "mine-1" in message
    assert SECRET not in response.text
    assert "mine-1" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2:3", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("<b>", False)],
)
def test_request_id_is_echoed_if_plain(client: httpx.Client, given: str, kept: bool) -> None:
    response = client.get("/health", headers={"X-Request-Id": given})
    assert (response.headers["x-request-id"] == given) is kept
    assert len(response.headers["x-request-id"]) <= 128


def test_models(client: httpx.Client) -> None:
    body = client.get("/v1/models").json()
    assert body["object"] == "list"
    assert [card["id"] for card in body["data"]] == ["org/fake-model"]


def test_server_info(client: httpx.Client) -> None:
    before = client.get("/server_info").json()
    client.post("/v1/score", json=GOOD)
    body = client.get("/server_info").json()
    assert (body["version"], body["state"]) == (__version__, "ready")
    assert body["server"]["max_body_bytes"] == 20_000
    assert body["engine"] == FakeScorer().info()
    assert body["scheduler"]["finished"] == before["scheduler"]["finished"] + 1


def test_openapi_documents_bodies(client: httpx.Client) -> None:
    assert client.get("/docs").status_code == 200
    api = client.get("/openapi.json").json()
    post = api["paths"]["/v1/score"]["post"]
    body = post["requestBody"]["content"]["application/json"]["schema"]
    fields = body["anyOf"][-1]["properties"]  # the other format there is vLLM's
    assert set(fields) == {"model", "return_token_logprobs", "return_tokens", *REQUEST_FIELDS}
    assert {"200", "400", "401", "413", "422", "429", "500", "503"} <= set(post["responses"])
    for reference in _references(api):
        target = api
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]


def _references(node: Any) -> Iterator[str]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from _references(child)
    if isinstance(node, dict) and isinstance(node.get("$ref"), str):
        yield node["$ref"]


@given(body=st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
@settings(max_examples=50)
def test_any_body_is_answered(url: str, body: bytes) -> None:
    assert send("POST", f"{url}/v1/score", content=body).status_code == 400


def test_every_code_is_documented_with_a_plain_status() -> None:
    assert set(STATUS_OF_CODE.values()) == PLAIN_STATUSES


@pytest.fixture(scope="module")
def keyed_url() -> Iterator[str]:
    config = ServerConfig("org/fake-model", api_key=KEY)
    with running_server(config, FakeScorer) as made:
        wait_until(lambda: get(f"{made}/health").status_code == 200)
        yield made


@pytest.mark.parametrize(
    "value", [None, b"Bearer wrong", b"Bearer", b"", KEY.encode(), b"Basic " + KEY.encode()]
)
@pytest.mark.parametrize(
    "path", ["/v1/score", "/rerank", "/v1/models", "/nowhere", "/server_info", "/flush_cache"]
)
def test_wrong_key_is_refused(keyed_url: str, path: str, value: bytes | None) -> None:
    headers = {} if value is None else {b"authorization": value}
    response = get(keyed_url + path, headers)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert KEY not in response.text


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer "])
def test_right_key_passes(keyed_url: str, scheme: bytes) -> None:
    headers = {b"authorization": scheme + KEY.encode()}
    assert post(keyed_url, GOOD, headers).json()["scores"] == GOOD_SCORES
    assert KEY not in get(f"{keyed_url}/server_info", headers).text


@pytest.mark.parametrize("path", ["/health", "/docs", "/openapi.json"])
def test_health_and_documentation_need_no_key(keyed_url: str, path: str) -> None:
    assert get(keyed_url + path).status_code == 200


def test_not_ready_until_loaded() -> None:
    go = threading.Event()

    def load() -> AnyScorer:
        assert go.wait(WAIT_S)
        return FakeScorer()

    with running_server(CONFIG, load) as url:
        assert_error(get(f"{url}/health"), 503, "not_ready")
        assert_error(post(url, GOOD), 503, "not_ready")
        assert get(f"{url}/server_info").json()["state"] == "loading"
        assert get(f"{url}/v1/models").status_code == 200
        go.set()
        wait_until(lambda: get(f"{url}/health").status_code == 200)
        response = post(url, GOOD)
    assert response.json()["scores"] == GOOD_SCORES


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (CheckpointError("/secret/path"), "unhealthy"),
        (RuntimeError("/secret/path"), "unhealthy"),
        (SelfCheckError("/secret/path"), "self_check_failed"),
    ],
)
def test_unhealthy_if_loading_failed(failure: Exception, code: str) -> None:
    def load() -> AnyScorer:
        raise failure

    with running_server(CONFIG, load) as url:
        wait_until(lambda: get(f"{url}/server_info").json()["state"] == "failed")
        for response in (get(f"{url}/health"), post(url, GOOD)):
            assert_error(response, 503, code)
            assert "/secret/path" not in response.text


@pytest.fixture
def scorer() -> FakeScorer:
    return FakeScorer()


@pytest.fixture
def busy(scorer: FakeScorer) -> Iterator[str]:
    """A server that runs a request until `scorer.go` is set."""
    with (
        running_server(CONFIG, lambda: scorer) as url,
        ThreadPoolExecutor(1) as pool,
    ):
        wait_until(lambda: get(f"{url}/health").status_code == 200)
        held = pool.submit(post, url, {**GOOD, "query": [HOLD]})
        assert scorer.holding.wait(WAIT_S)
        try:
            yield url
        finally:
            scorer.go.set()
        assert held.result(WAIT_S).status_code == 200


def test_health_answers_while_scores_are_made(busy: str) -> None:
    assert get(f"{busy}/health").status_code == 200


def test_full_queue_is_refused_with_retry_after(busy: str, scorer: FakeScorer) -> None:
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(post, busy, GOOD) for _ in range(2)]
        wait_until(lambda: counters(busy)["queued"] == 2)
        response = post(busy, GOOD)
        assert assert_error(response, 429, "queue_full")["type"] == "rate_limit_error"
        assert int(response.headers["retry-after"]) >= 1
        scorer.go.set()
        assert [f.result(WAIT_S).json()["scores"] for f in waiting] == [GOOD_SCORES] * 2


def test_client_who_leaves_gives_up_its_place(busy: str, scorer: FakeScorer) -> None:
    leave_after(busy, json.dumps(GOOD).encode(), lambda: counters(busy)["queued"] == 1)
    wait_until(lambda: counters(busy)["queued"] == 0)
    assert counters(busy)["cancelled"] == 1
    scorer.go.set()
    assert post(busy, GOOD).json()["scores"] == GOOD_SCORES


def test_client_who_leaves_within_the_body_harms_nobody(busy: str, scorer: FakeScorer) -> None:
    leave_after(busy, b'{"query"', lambda: True, declared=100)
    scorer.go.set()
    assert post(busy, GOOD).json()["scores"] == GOOD_SCORES


def leave_after(
    url: str, body: bytes, happened: Callable[[], bool], declared: int | None = None
) -> None:
    """Sends a request by hand and closes the connection once `happened()`."""
    parts = urlsplit(url)
    length = len(body) if declared is None else declared
    with socket.create_connection((parts.hostname, parts.port), WAIT_S) as connection:
        head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + body)
        wait_until(happened)
