"""The client against answers in the forms that SGLang and vLLM document."""

from __future__ import annotations

import time
from typing import Any

import pytest

from itemwise.errors import ConfigError, EndpointError, RequestRefusedError
from itemwise.validation.client import ScoreClient
from itemwise.validation.evaluate import evaluate
from tests.validation.planted import SMALL, scripted_server, truth

# As SGLang and vLLM answer; the numbers are made up.
SGLANG = {"scores": [[0.25, 0.75], [0.5, 0.5]], "model": "m", "usage": None, "object": "scoring"}
VLLM: dict[str, Any] = {
    "id": "generative-scoring-1",
    "object": "list",
    "created": 1774000000,
    "model": "m",
    "data": [
        {"index": 1, "object": "score", "score": 0.5},
        {"index": 0, "object": "score", "score": 0.25},
    ],
    "usage": {"prompt_tokens": 6, "total_tokens": 6, "completion_tokens": 0},
}


def ask(answer: Any, status: int = 200, **settings: Any) -> tuple[list[list[float]], Any]:
    asked = []

    def respond(_: int, body: Any) -> tuple[int, Any]:
        asked.append(body)
        return status, answer

    with scripted_server(respond) as url, ScoreClient(url, "m", **settings) as client:
        scores = client.score([1, 2], [[3], [4, 5]], [7, 8])
    return scores, asked[0]


def test_sglang_form() -> None:
    scores, asked = ask(SGLANG, api_key="k")
    assert scores == [[0.25, 0.75], [0.5, 0.5]]
    assert asked["path"] == "/v1/score"
    assert asked["headers"]["authorization"] == "Bearer k"
    assert (asked["query"], asked["items"], asked["label_token_ids"]) == (
        [1, 2],
        [[3], [4, 5]],
        [7, 8],
    )
    assert (asked["model"], asked["apply_softmax"], asked["item_first"]) == ("m", True, False)


def test_vllm_form_gives_the_first_label_in_the_order_of_items() -> None:
    scores, asked = ask(VLLM, dialect="vllm")
    assert scores == [[0.25], [0.5]]
    assert asked["path"] == "/generative_scoring"


@pytest.mark.parametrize(
    ("answer", "dialect"),
    [
        (VLLM, "sglang"),
        (SGLANG, "vllm"),
        ({**SGLANG, "scores": [[0.5]]}, "sglang"),
        ({**SGLANG, "scores": [[0.5], [None]]}, "sglang"),
        ({**SGLANG, "scores": [[0.5], []]}, "sglang"),
        (b'{"scores": [[0.5], [NaN]]}', "sglang"),
        ({**VLLM, "data": VLLM["data"] * 2}, "vllm"),
        ([1], "sglang"),
        (b"<html>", "sglang"),
    ],
)
def test_other_answers_are_shown(answer: Any, dialect: Any) -> None:
    with pytest.raises(EndpointError, match="answered"):
        ask(answer, dialect=dialect)


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (422, {"error": {"message": "too large", "code": "token_id_exceeds_vocab"}}, "--workload"),
        (400, {"object": "error", "message": "id 9 is out of vocabulary range"}, "--workload"),
        (400, {"error": {"message": "too many"}}, "answered 400: too many"),
    ],
)
def test_refusals_say_why(status: int, answer: Any, message: str) -> None:
    with pytest.raises(RequestRefusedError, match=message):
        ask(answer, status)


@pytest.mark.parametrize(("status", "message"), [(401, "--api-key"), (500, "boom"), (429, "busy")])
def test_failures_are_no_refusals(status: int, message: str) -> None:
    with pytest.raises(EndpointError, match=message) as found:
        ask({"message": {500: "boom", 429: "busy"}.get(status, "no")}, status)
    assert not isinstance(found.value, RequestRefusedError)


def test_a_slow_server_is_given_up_in_time() -> None:
    def late(_: int, __: Any) -> tuple[int, Any]:
        time.sleep(1)
        return 200, SGLANG

    start = time.monotonic()
    with (
        scripted_server(late) as url,
        ScoreClient(url, timeout_s=0.2) as client,
        pytest.raises(EndpointError, match=r"within 0.2 s; raise --timeout"),
    ):
        client.score([1], [[2]], [3])
    assert time.monotonic() - start < 10


def test_nobody_there() -> None:
    with scripted_server(lambda *_: None) as url:
        pass
    with ScoreClient(url) as client, pytest.raises(EndpointError, match="cannot be reached"):
        client.score([1], [[2]], [3])
    with pytest.raises(ConfigError, match="expected http://HOST"):
        ScoreClient("127.0.0.1:30010")


def test_another_server_can_be_evaluated_in_its_dialect() -> None:
    def score(_: int, body: Any) -> tuple[int, Any]:
        rows = [truth(body["query"], item, body["label_token_ids"]) for item in body["items"]]
        data = [{"index": i, "object": "score", "score": row[0]} for i, row in enumerate(rows)]
        return 200, {**VLLM, "data": data}

    with scripted_server(score) as url, ScoreClient(url, dialect="vllm") as client:
        results = evaluate(client, "multi", amount=SMALL)
    assert results["complete"]
    assert [len(row) for row in results["isolation"]["base_scores"]] == [1] * 5
    assert results["isolation"]["same_length_mutation"]["max_abs_diff_unchanged"] == 0.0
    assert results["server_dtype"] is None
    assert results["probes"]["chunk_sizes"]["pass"] is None
    assert results["probes"]["order"]["pass"] is True
