"""Decisions in TypeSafe's, OpenAI's and SGLang's words: the same numbers, each in its shape."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from itemwise.dialects import openai_decisions, sglang_decisions, systemone
from itemwise.dialects.base import Fault
from itemwise.dialects.table import dialect_of
from itemwise.request.decide.read_out import choice_confidence, rating_confidence
from tests.dialects.backend import ask, refused
from tests.server.fakes import fake_score

STATE = "w1 w2"
NOUL: dict[str, Any] = {"type": "noul", "instructions": "w3"}
CHOICE: dict[str, Any] = {
    "type": "choice",
    "instructions": "w4",
    "criteria": {"w20": None, "w21": "w22 w23"},
}
SCORE: dict[str, Any] = {"type": "score", "instructions": "w5", "criteria": ["w24", {"w25": 1}]}
SYSTEM_ONE: dict[str, Any] = {
    "model": "jev-latest",
    "state": STATE,
    "questions": {"a": NOUL, "b": CHOICE, "c": SCORE},
}
SGLANG: dict[str, Any] = {
    "input": STATE,
    "questions": [
        {"id": "a", "type": "yes_no", "question": "w3"},
        {
            "id": "b",
            "type": "choice",
            "question": "w4",
            "options": [{"name": "w20"}, {"name": "w21", "description": "w22 w23"}],
        },
        {"id": "c", "type": "score", "question": "w5", "levels": ["w24", {"w25": 1}]},
    ],
}
OPENAI: dict[str, Any] = {
    "model": "mine",
    "input": STATE,
    "questions": [
        {"type": "predicate", "instructions": "w3"},
        {
            "type": "choice",
            "name": "b",
            "instructions": "w4",
            "choices": [{"value": "w20"}, {"value": "w21", "description": "w22 w23"}],
        },
        {
            "type": "score",
            "name": "c",
            "instructions": "w5",
            "levels": [{"label": "w24"}, {"label": '{"w25":1}'}],
        },
    ],
}


def softmax(words: str, labels: list[int]) -> list[float]:
    """What the fake scorer gives for the labels after the words of a question."""
    item = [int(word[1:]) if word[1:].isdigit() else 1 for word in words.split()]
    logits = np.array([fake_score([0, 1, 2], item, label) for label in labels])
    weights = np.exp(logits - logits.max())
    return [float(value) for value in weights / weights.sum()]


YES = softmax("w50 w3 w60 w70", [7, 8])
OPTIONS = softmax("w4 w100 w20 w101 w22 w23 w61 w70", [100, 101])
LEVELS = softmax("w5 w100 w24 w101 {} w62 w70", [100, 101])


def close(values: Any) -> Any:
    return pytest.approx(values, abs=1e-6)


def test_system_one_answers_every_type() -> None:
    answer = ask("/v1/systemone", SYSTEM_ONE)
    noul, choice, score = (answer["answers"][name] for name in "abc")
    assert answer["model"] == "mine"
    assert answer["usage"].keys() == {"input_tokens", "output_tokens"}
    assert noul == {"type": "noul", "noul": close(YES[0])}
    assert choice == {
        "type": "choice",
        "choice": ("w20", "w21")[int(np.argmax(OPTIONS))],
        "probabilities": {"w20": close(OPTIONS[0]), "w21": close(OPTIONS[1])},
        "confidence": close(choice_confidence(OPTIONS)),
    }
    assert score == {
        "type": "score",
        "score": close(LEVELS[1]),
        "legend": {"0": "w24", "1": {"w25": 1}},
        "probabilities": {"0": close(LEVELS[0]), "1": close(LEVELS[1])},
        "confidence": close(rating_confidence(LEVELS)),
    }


def test_sglang_has_the_same_numbers_in_its_shape() -> None:
    found = ask("/v1/systemone", SYSTEM_ONE)["answers"]
    answer = ask("/v1/decisions", SGLANG)
    yes, choice, score = (answer["answers"][name] for name in "abc")
    assert (answer["object"], answer["prompt_format_version"]) == ("decisions", 1)
    assert yes["probabilities"] == {"yes": found["a"]["noul"], "no": close(YES[1])}
    assert choice["probabilities"] == found["b"]["probabilities"]
    assert choice["choice"] == found["b"]["choice"]
    assert (score["probabilities"], score["score"]) == (
        found["c"]["probabilities"],
        found["c"]["score"],
    )
    assert all(0 < each["label_mass"] <= 1 for each in answer["answers"].values())
    assert all("prompt_token_ids" not in each for each in answer["answers"].values())
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0


def test_sglang_gives_the_tokens_that_it_read() -> None:
    answer = ask("/v1/decisions", {**SGLANG, "return_prompt_token_ids": True})["answers"]["a"]
    assert answer["prompt_token_ids"] == [0, 1, 2, 50, 3, 60, 70]
    assert answer["label_token_ids"] == [7, 8]


def test_openai_has_the_same_numbers_in_the_order_of_the_questions() -> None:
    found = ask("/v1/systemone", SYSTEM_ONE)["answers"]
    answer = ask("/v1/decisions", OPENAI)
    predicate, choice, score = answer["answers"]
    assert predicate == {"type": "predicate", "name": None, "probability": found["a"]["noul"]}
    assert choice["name"] == "b"
    assert {each["value"]: each["probability"] for each in choice["probabilities"]} == (
        found["b"]["probabilities"]
    )
    assert (choice["choice"], choice["confidence"]) == (
        found["b"]["choice"],
        found["b"]["confidence"],
    )
    assert [each["probability"] for each in score["probabilities"]] == [
        *found["c"]["probabilities"].values()
    ]
    assert [(each["value"], each["label"]) for each in score["probabilities"]] == [
        (0, "w24"),
        (1, '{"w25":1}'),
    ]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] > 0
    assert usage["input_tokens_details"].keys() == {"cached_tokens", "cache_write_tokens"}
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}


def test_boolean_values_are_not_their_texts() -> None:
    choices = [{"value": True}, {"value": "true"}, {"value": False}]
    question = {"type": "choice", "instructions": "w4", "choices": choices}
    (answer,) = ask("/v1/decisions", {"input": STATE, "questions": [question]})["answers"]
    assert [each["value"] for each in answer["probabilities"]] == [True, "true", False]
    question = {**question, "choices": [{"value": True}, {"value": True}]}
    assert refused("/v1/decisions", {"input": STATE, "questions": [question]}).code == (
        "invalid_question"
    )


def test_messages_become_text() -> None:
    def tokens(value: Any) -> Any:
        body = {**OPENAI, "input": value}
        return openai_decisions.DIALECT.read(body).call.state  # type: ignore[union-attr]

    text = {"type": "input_text", "text": "w1"}
    assert tokens([{"role": "user", "content": "w1 w2"}]) == "w1 w2"
    assert tokens(
        [{"role": "user", "content": [text, {"type": "input_json", "data": {"a": 1}}]}]
    ) == ('w1\n{"a":1}')
    assert (
        tokens(
            [
                {"role": "system", "content": "w1"},
                {"type": "message", "role": "user", "content": "w2"},
            ]
        )
        == "system: w1\n\nuser: w2"
    )
    call = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "1"}
    assert tokens([call]) == '{"type":"function_call","name":"f","arguments":"{}","call_id":"1"}'


@pytest.mark.parametrize(
    ("body", "format_of"),
    [
        (SYSTEM_ONE, systemone),
        ({"questions": {"a": NOUL}}, systemone),
        (SGLANG, sglang_decisions),
        (OPENAI, openai_decisions),
        ({"input": STATE, "questions": [{"type": "predicate", "name": "x"}]}, openai_decisions),
        ({}, openai_decisions),
        ({"questions": [7]}, openai_decisions),
    ],
)
def test_one_path_has_three_shapes(body: dict[str, Any], format_of: Any) -> None:
    assert dialect_of("/v1/decisions", body) is format_of.DIALECT
    assert dialect_of("/v1/systemone", body) is systemone.DIALECT


def test_own_fields_are_off_unless_asked_for() -> None:
    plain = ask("/v1/systemone", SYSTEM_ONE)
    assert not [name for name in (*plain, *plain["answers"]["a"]) if name.startswith("x_")]
    body = {**SYSTEM_ONE, "x_label_mass": True, "x_usage": True, "x_rotations": 255}
    answer = ask("/v1/systemone", body)
    assert all("x_label_mass" in each for each in answer["answers"].values())
    assert answer["x_usage"]["shared_tokens"] == 3
    assert answer["x_usage"]["computed_tokens"] == answer["usage"]["input_tokens"]
    assert answer["answers"]["b"]["probabilities"] != plain["answers"]["b"]["probabilities"]
    assert answer["answers"]["a"]["noul"] == plain["answers"]["a"]["noul"]
    for path, other in (("/v1/decisions", SGLANG), ("/v1/decisions", OPENAI)):
        assert "x_usage" in ask(path, {**other, "x_usage": True, "x_rotations": 2})


def question_with(**fields: Any) -> dict[str, Any]:
    return {**SYSTEM_ONE, "questions": {"a": {**CHOICE, **fields}}}


@pytest.mark.parametrize(
    ("path", "body", "code", "part"),
    [
        ("/v1/systemone", {**SYSTEM_ONE, "questions": {}}, "invalid_request", "questions"),
        ("/v1/systemone", {**SYSTEM_ONE, "state": 7}, "invalid_request", "state"),
        ("/v1/systemone", {"questions": {"a": NOUL}}, "invalid_request", "state"),
        ("/v1/systemone", question_with(criteria=["w1"]), "invalid_request", "criteria"),
        ("/v1/systemone", question_with(criteria={}), "invalid_request", "criteria"),
        ("/v1/systemone", question_with(critera={}), "invalid_request", "critera"),
        ("/v1/systemone", question_with(criteria={"": None}), "invalid_question", "equal or empty"),
        (
            "/v1/systemone",
            question_with(criteria={str(n): None for n in range(256)}),
            "invalid_request",
            "255",
        ),
        (
            "/v1/systemone",
            {**SYSTEM_ONE, "questions": {"a": {"type": "box"}}},
            "invalid_request",
            "box",
        ),
        (
            "/v1/systemone",
            {**SYSTEM_ONE, "questions": {"a": {"type": "noul", "instructions": " "}}},
            "invalid_question",
            "asks nothing",
        ),
        (
            "/v1/systemone",
            {**SYSTEM_ONE, "questions": {"a": {**SCORE, "criteria": ["w1", ""]}}},
            "invalid_question",
            "level 1",
        ),
        ("/v1/systemone", {**SYSTEM_ONE, "assets": {"x": {}}}, "unsupported_field", "images"),
        ("/v1/systemone", {**SYSTEM_ONE, "x_rotations": 0}, "invalid_request", "x_rotations"),
        ("/v1/systemone", {**SYSTEM_ONE, "x_rotations": True}, "invalid_request", "x_rotations"),
        ("/v1/systemone", {**SYSTEM_ONE, "state": "w1 " * 99}, "sequence_too_long", "state"),
        ("/v1/decisions", {**SGLANG, "unknown": 1}, "invalid_request", "unknown"),
        ("/v1/decisions", {**SGLANG, "images": ["x"]}, "unsupported_field", "images"),
        ("/v1/decisions", {**SGLANG, "prompt_format_version": 2}, "invalid_request", "version"),
        ("/v1/decisions", {**SGLANG, "temperature": 0}, "invalid_request", "temperature"),
        (
            "/v1/decisions",
            {**SGLANG, "chat_template_kwargs": {"enable_thinking": True}},
            "unsupported_field",
            "enable_thinking",
        ),
        (
            "/v1/decisions",
            {**SGLANG, "questions": SGLANG["questions"][:1] * 2},
            "invalid_question",
            "twice",
        ),
        (
            "/v1/decisions",
            {**OPENAI, "input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "unsupported_field",
            "images",
        ),
        (
            "/v1/decisions",
            {**OPENAI, "questions": OPENAI["questions"] * 134},
            "invalid_request",
            "400",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(
    path: str, body: dict[str, Any], code: str, part: str
) -> None:
    error = refused(path, body)
    assert error.code == code
    assert part in str(error)


def test_deep_values_are_refused() -> None:
    value: Any = "w1"
    for _ in range(200):
        value = [value]
    for body in (
        {**SYSTEM_ONE, "state": value},
        question_with(instructions=value),
        question_with(criteria={"w1": value}),
        {**SYSTEM_ONE, "questions": {"a": {**SCORE, "criteria": [value]}}},
    ):
        error = refused("/v1/systemone", body)
        assert (error.code, "100 deep" in str(error)) == ("invalid_question", True)
        assert error.param in ("state", "questions")


def test_work_is_counted_before_it_is_done() -> None:
    wide = {f"w{n}": "w1 " * 1_000_000 for n in range(8)}
    body = {**SYSTEM_ONE, "questions": {"a": {**CHOICE, "criteria": wide}}, "x_rotations": 8}
    error = refused("/v1/systemone", body)
    assert error.code == "too_many_tokens"
    assert "fewer rotations" in str(error)
    many = {**SYSTEM_ONE, "questions": {str(n): NOUL for n in range(9)}}
    assert refused("/v1/systemone", many).code == "too_many_items"  # the server's own limit is 8
    turned = {"a": {**CHOICE, "criteria": dict.fromkeys(f"w{n}" for n in range(9))}}
    body = {**SYSTEM_ONE, "questions": turned, "x_rotations": 9}
    assert refused("/v1/systemone", body).code == "too_many_items"


def test_errors_have_the_shape_of_the_format() -> None:
    fault = Fault(400, "invalid_question", "invalid_request_error", "no", "questions")
    dialect = systemone.DIALECT
    assert dialect.status(fault) == 422
    detail = dialect.error(fault)["detail"]
    assert detail == [{"loc": ["body", "questions"], "msg": "no", "type": "invalid_question"}]
    refusal = dataclasses.replace(fault, status=401, type="authentication_error")
    assert dialect.status(refusal) == 401
    assert dialect.error(refusal)["detail"] == {
        "error_type": "authentication_error",
        "message": "no",
    }
    unknown = dataclasses.replace(fault, code="model_not_found")
    assert (dialect.status(unknown), type(dialect.error(unknown)["detail"])) == (404, dict)
    for other in (openai_decisions.DIALECT, sglang_decisions.DIALECT):
        assert other.status(fault) == 400
        assert other.error(fault)["error"]["code"] == "invalid_question"


@pytest.mark.parametrize("path", ["/v1/systemone", "/v1/decisions"])
def test_any_client_of_typesafe_may_ask(path: str) -> None:
    body = {**SYSTEM_ONE, "extra": 1}
    assert dialect_of(path, body).read(body).model is None
    assert dialect_of(path, body).read({**body, "model": "other"}).model == "other"
