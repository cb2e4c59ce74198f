"""SGLang's and vLLM's score formats: what they allow, and what is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.dialects.backend import ask, refused
from tests.server.fakes import GOOD, GOOD_SCORES, fake_score

TEXT: dict[str, Any] = {"query": "w1", "items": ["w2", "w3 w4"], "label_token_ids": [7, 8]}


def test_one_text_is_one_item() -> None:
    answer = ask("/v1/score", {**TEXT, "items": "w2"})
    assert answer["scores"] == ask("/v1/score", {**TEXT, "items": ["w2"]})["scores"]


def test_no_items_have_no_scores() -> None:
    answer = ask("/v1/score", {**GOOD, "items": []})
    assert answer["scores"] == []
    assert answer["usage"] == {"prompt_tokens": 0, "total_tokens": 0, "completion_tokens": 0}


@pytest.mark.parametrize("query", [None, "", []])
def test_items_without_a_query_begin_the_sequence(query: Any) -> None:
    ids = ask("/v1/score", {**GOOD, "query": query, "items": [[3], [4, 5]]})
    assert ids["scores"] == [[fake_score([], i, label) for label in (7, 8)] for i in ([3], [4, 5])]
    texts = ask("/v1/score", {**TEXT, "query": query})
    expected = [[fake_score([0], item, x) for x in (7, 8)] for item in ([2], [3, 4])]
    assert texts["scores"] == expected
    assert refused("/v1/score", {**GOOD, "query": query}).code == "empty_query"


def test_log_probabilities_come_beside_scores() -> None:
    plain = ask("/v1/score", GOOD)
    both = ask("/v1/score", {**GOOD, "return_token_logprobs": True})
    assert both["scores"] == plain["scores"] == GOOD_SCORES
    assert "token_logprobs" not in plain
    # The fake scorer's logits are its scores, and its log-sum-exp is 0.
    assert both["token_logprobs"] == pytest.approx(np.array(GOOD_SCORES))
    softmax = {**GOOD, "apply_softmax": True, "temperature": 2.0, "return_token_logprobs": True}
    answer = ask("/v1/score", softmax)
    weights = np.exp(np.array(GOOD_SCORES, np.float32).astype(np.float64) / 2)
    expected = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    assert np.allclose(answer["scores"], expected, rtol=1e-6)
    assert answer["token_logprobs"] == both["token_logprobs"]


def test_log_probabilities_have_no_temperature() -> None:
    fields = {**GOOD, "temperature": 2.0, "return_token_logprobs": True}
    assert refused("/v1/score", fields).code == "invalid_temperature"


def test_log_probabilities_of_labels_per_item() -> None:
    fields = {**GOOD, "label_token_ids": [[7], [8, 9], [7]], "return_token_logprobs": True}
    answer = ask("/v1/score", fields)
    assert [len(row) for row in answer["token_logprobs"]] == [1, 2, 1]


@pytest.mark.parametrize(
    "name",
    [
        "score_extraction_token",
        "embed_override_token_id",
        "query_embed_overrides",
        "item_embed_overrides",
        "return_pooled_hidden_states",
    ],
)
def test_field_that_would_change_the_answer_is_refused_by_name(name: str) -> None:
    error = refused("/v1/score", {**GOOD, name: 1})
    assert (error.code, error.param) == ("unsupported_field", name)
    assert name in str(error)
    for absent in (None, False):
        assert ask("/v1/score", {**GOOD, name: absent})["scores"] == GOOD_SCORES


def test_long_item_is_cut_if_asked_for() -> None:
    items = [[3], [3] * 100, [4, 5]]
    assert refused("/v1/score", {**GOOD, "items": items}).code == "sequence_too_long"
    answer = ask("/v1/score", {**GOOD, "items": items, "truncate": True})
    assert answer["truncated_items"] == [1]
    most = 64 - 1 - 2  # the model's limit, the delimiter, the query
    expected = ask("/v1/score", {**GOOD, "items": [[3], [3] * most, [4, 5]]})
    assert answer["scores"] == expected["scores"]
    assert "truncated_items" not in expected
    short = ask("/v1/score", {**TEXT, "truncate": True, "max_tokens_per_item": 1})
    assert short["scores"] == ask("/v1/score", {**TEXT, "items": ["w2", "w3"]})["scores"]
    assert short["truncated_items"] == [1]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generative_scoring", {**GOOD, "items": [[3], [3] * 100], "truncate": True}),
        ("/v1/score", {"text_1": "w1", "text_2": ["w2", "w3 " * 100]}),
    ],
)
def test_scores_in_a_list_say_which_items_were_cut(path: str, body: dict[str, Any]) -> None:
    assert [row.get("truncated") for row in ask(path, body)["data"]] == [None, True]
    assert refused(path, {**body, "truncate": False}).code == "sequence_too_long"


@pytest.mark.parametrize(("name", "value"), [("truncate", 1), ("max_tokens_per_item", 0)])
def test_wrong_cut_is_refused(name: str, value: Any) -> None:
    assert refused("/v1/score", {**GOOD, name: value}).code == f"invalid_{name}"


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    ("first", "second"),
    [("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2"), ("queries", "items")],
)
def test_pairs_of_vllm_have_the_scores_of_a_ranking(path: str, first: str, second: str) -> None:
    ranking = ask("/rerank", {"query": "w1", "documents": ["w2", "w3 w4"]})
    by_index = {result["index"]: result["relevance_score"] for result in ranking["results"]}
    for query in ("w1", ["w1"], ["w1", "w1"]):
        answer = ask(path, {first: query, second: ["w2", "w3 w4"]})
        assert answer["object"] == "list"
        assert {row["index"]: row["score"] for row in answer["data"]} == by_index
    assert len(ask(path, {first: "w1", second: "w2"})["data"]) == 1


def test_pairs_may_have_different_queries() -> None:
    answer = ask("/score", {"text_1": ["w1", "w2"], "text_2": ["w3", "w4"]})
    alone = [
        ask("/score", {"text_1": query, "text_2": text})["data"][0]["score"]
        for query, text in (("w1", "w3"), ("w2", "w4"))
    ]
    assert len(answer["data"]) == 2
    assert [row["score"] for row in answer["data"]] != alone[::-1]
    error = refused("/score", {"text_1": ["w1", "w2"], "text_2": ["w3", "w4", "w5"]})
    assert (error.code, error.param) == ("invalid_query_type", "text_1")


def test_generative_scoring_gives_the_first_label() -> None:
    answer = ask("/generative_scoring", {**GOOD, "apply_softmax": False})
    assert [row["score"] for row in answer["data"]] == [row[0] for row in GOOD_SCORES]
    assert ask("/generative_scoring", {**GOOD, "items": []})["data"] == []


def test_tokens_come_with_their_texts_the_shared_ones_apart() -> None:
    answer = ask("/v1/score", {**TEXT, "return_tokens": True})
    assert answer["scores"] == ask("/v1/score", TEXT)["scores"]
    # Sequences begin with token 0; the fake server has a delimiter.
    assert answer["tokens"] == {
        "shared": {"ids": [0, 1, 999], "texts": ["w0", "w1", "w999"]},
        "items": [{"ids": [2], "texts": ["w2"]}, {"ids": [3, 4], "texts": ["w3", "w4"]}],
    }
    assert "tokens" not in ask("/v1/score", {**TEXT, "return_tokens": None})


def test_tokens_with_the_item_first_share_nothing() -> None:
    answer = ask("/v1/score", {**GOOD, "return_tokens": True, "item_first": True})
    assert answer["tokens"]["shared"] == {"ids": [], "texts": []}
    assert [item["ids"] for item in answer["tokens"]["items"]] == [
        [*item, 999, 1, 2] for item in GOOD["items"]
    ]


@pytest.mark.parametrize("wanted", [1, "yes", [True]])
def test_tokens_are_asked_for_with_true(wanted: Any) -> None:
    assert refused("/v1/score", {**GOOD, "return_tokens": wanted}).code == "invalid_request"


def test_tokens_of_long_requests_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itemwise.request.token_texts.MAX_TOKENS", 5)
    assert ask("/v1/score", {**GOOD, "return_tokens": True})["tokens"]  # 2 + 1 + 0 + 2 tokens
    longer = {**GOOD, "items": [[3], [], [4, 5, 6]], "return_tokens": True}
    error = refused("/v1/score", longer)
    assert (error.code, error.param) == ("too_many_tokens", "return_tokens")
    again = {**GOOD, "item_first": True, "return_tokens": True}  # the query in front of each item
    assert refused("/v1/score", again).code == "too_many_tokens"
