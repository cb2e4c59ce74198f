"""Decisions over HTTP: statuses and errors in the shape that the clients of a path read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from itemwise.config import ServerConfig
from tests.dialects.test_decisions import OPENAI, SGLANG, SYSTEM_ONE
from tests.server.fakes import FakeScorer, get, running_server, send, wait_until

KEY = "a-key"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    config = ServerConfig("org/fake-model", api_key=KEY, max_request_labels=20)
    with running_server(config, FakeScorer) as made:
        wait_until(lambda: get(f"{made}/health").status_code == 200)
        yield made


def post(url: str, path: str, body: Any, key: str = KEY) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}"}
    how: Any = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = send("POST", url + path, headers=headers, **how)
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/systemone", SYSTEM_ONE),
        ("/v1/decisions", SYSTEM_ONE),
        ("/v1/decisions", SGLANG),
        ("/v1/decisions", {**OPENAI, "model": "fake-model"}),
    ],
)
def test_every_format_is_answered(url: str, path: str, body: dict[str, Any]) -> None:
    status, answer = post(url, path, body)
    assert (status, len(answer["answers"]), answer["model"]) == (200, 3, "org/fake-model")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 422),
        (b"[]", 422),
        ({**SYSTEM_ONE, "questions": {}}, 422),
        ({**SYSTEM_ONE, "x_rotations": 2.5}, 422),
        ({**SYSTEM_ONE, "state": "w1 " * 99}, 422),
        (
            {**SYSTEM_ONE, "questions": {str(n): SYSTEM_ONE["questions"]["b"] for n in range(8)}},
            200,
        ),
    ],
)
def test_a_body_at_fault_has_422_with_its_places(url: str, body: Any, status: int) -> None:
    got, answer = post(url, "/v1/systemone", body)
    assert got == status
    if status == 422:
        (detail,) = answer["detail"]
        assert detail["loc"][0] == "body"
        assert detail["msg"] == answer["message"]


def test_too_many_labels_are_refused_before_they_are_scored(url: str) -> None:
    wide = {"type": "choice", "criteria": {f"w{n}": None for n in range(21)}}
    status, answer = post(url, "/v1/systemone", {**SYSTEM_ONE, "questions": {"a": wide}})
    assert (status, answer["detail"][0]["type"]) == (422, "too_many_labels")


def test_other_errors_have_a_type_and_a_message(url: str) -> None:
    status, answer = post(url, "/v1/systemone", SYSTEM_ONE, key="wrong")
    assert (status, answer["detail"]["error_type"]) == (401, "authentication_error")
    status, answer = post(url, "/v1/systemone", {**SYSTEM_ONE, "model": "other"})
    assert (status, "fake-model" in answer["detail"]["message"]) == (404, True)
    status, answer = post(url, "/v1/decisions", OPENAI, key="wrong")
    assert (status, answer["error"]["type"]) == (401, "authentication_error")
    status, answer = post(url, "/v1/decisions", {**SGLANG, "questions": [{"id": 1}]})
    assert (status, answer["object"], answer["code"]) == (400, "error", 400)
