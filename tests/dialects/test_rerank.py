"""Rerank in Cohere's, Jina's, Voyage's and TEI's words: same order, same scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from itemwise.dialects import rerank, tei
from itemwise.dialects.table import dialect_of
from tests.dialects.backend import FAULT, ask, refused
from tests.server.fakes import fake_score

QUERY, DOCUMENTS = "w1 w2", ["w3", "w4 w5", "w6", "w11"]
BODY: dict[str, Any] = {"query": QUERY, "documents": DOCUMENTS}


def margin(document: str) -> float:
    """Log-odds that the fake scorer gives."""
    words = [int(word[1:]) for word in f"{document} w9".split()]
    yes, no = (np.float32(fake_score([0, 1, 2], words, label)) for label in (7, 8))
    return float(np.float64(yes) - np.float64(no))


MARGINS = [margin(document) for document in DOCUMENTS]
ORDER = np.argsort(-np.array(MARGINS), kind="stable").tolist()
SCORES = [1 / (1 + np.exp(-value)) for value in MARGINS]


@pytest.mark.parametrize("path", rerank.PATHS)
def test_envelope_has_what_every_client_needs(path: str) -> None:
    answer = ask(path, {**BODY, "model": "any", "rank_fields": ["x"], "user": "u"})
    assert [result["index"] for result in answer["results"]] == ORDER
    assert [result["relevance_score"] for result in answer["results"]] == pytest.approx(
        [SCORES[index] for index in ORDER], rel=1e-12
    )
    assert answer["data"] == answer["results"]
    assert (answer["object"], answer["model"]) == ("rerank", "mine")
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0
    assert not any("document" in result for result in answer["results"])


@pytest.mark.parametrize("name", ["top_n", "top_k"])
def test_best_are_returned(name: str) -> None:
    for number, expected in ((2, ORDER[:2]), (99, ORDER), (None, ORDER)):
        answer = ask("/rerank", {**BODY, name: number})
        assert [result["index"] for result in answer["results"]] == expected


def test_documents_are_returned_as_objects_if_asked_for() -> None:
    objects = [{"text": text} for text in DOCUMENTS]
    answer = ask("/v1/rerank", {**BODY, "documents": objects, "return_documents": True})
    assert [result["document"] for result in answer["results"]] == [objects[i] for i in ORDER]


def test_infinity_gets_documents_as_texts() -> None:
    answer = ask("/infinity/rerank", {**BODY, "return_documents": True})
    assert [result["document"] for result in answer["results"]] == [DOCUMENTS[i] for i in ORDER]
    assert answer["usage"] == ask("/rerank", BODY)["usage"]


def test_raw_scores_are_margins() -> None:
    answer = ask("/rerank", {**BODY, "raw_scores": True})
    found = [result["relevance_score"] for result in answer["results"]]
    assert found == pytest.approx(sorted(MARGINS, reverse=True), abs=1e-12)


def test_texts_give_the_list_of_tei() -> None:
    answer = ask("/rerank", {"query": QUERY, "texts": DOCUMENTS, "return_text": True})
    assert answer == [
        {"index": i, "score": pytest.approx(SCORES[i], rel=1e-12), "text": DOCUMENTS[i]}
        for i in ORDER
    ]
    raw = ask("/rerank", {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True})
    assert [row["score"] for row in raw] == pytest.approx([MARGINS[i] for i in ORDER], abs=1e-12)


def test_long_documents_are_cut_flagged_or_refused() -> None:
    documents = ["w3", "w4 " * 100, "w6"]
    answer = ask("/rerank", {**BODY, "documents": documents})
    flags = {result["index"]: result.get("truncated") for result in answer["results"]}
    assert flags == {0: None, 1: True, 2: None}
    assert "1 documents" in answer["meta"]["warnings"][0]
    short = ask("/rerank", {**BODY, "documents": ["w3", "w4 w5 w6"], "max_tokens_per_doc": 1})
    alone = ask("/rerank", {**BODY, "documents": ["w3", "w4"]})
    by_index = [
        {result["index"]: result["relevance_score"] for result in each["results"]}
        for each in (short, alone)
    ]
    assert by_index[0] == by_index[1]
    for name in ("truncate", "truncation"):
        error = refused("/rerank", {**BODY, "documents": documents, name: False})
        assert (error.code, error.param) == ("sequence_too_long", "documents")
        assert "`documents[1]`" in str(error)
    error = refused("/rerank", {"query": QUERY, "texts": documents, "truncate": False})
    assert "`texts[1]`" in str(error)


@pytest.mark.parametrize(
    ("change", "code", "param", "said"),
    [
        ({"query": None}, "invalid_request", "query", "`query`"),
        ({"query": ["w1"]}, "invalid_request", "query", "`query`"),
        ({"documents": []}, "empty_items", "documents", "`documents`"),
        ({"documents": "w1"}, "invalid_request", "documents", "`documents`"),
        ({"documents": [1, None]}, "invalid_request", "documents", "`documents.1"),
        ({"documents": ["w1", {"image": "x"}]}, "invalid_items_type", "documents", "[1]"),
        ({"documents": ["w1"] * 9}, "too_many_items", "documents", "at most 8"),
        ({"top_n": 0}, "invalid_request", "top_n", "greater than or equal to 1"),
        ({"top_n": "2"}, "invalid_request", "top_n", "integer"),
        ({"top_n": True}, "invalid_request", "top_n", "integer"),
        ({"max_tokens_per_doc": 0}, "invalid_request", "max_tokens_per_doc", "greater"),
        ({"instruction": "Find code"}, "no_instruction", "instruction", "no place"),
    ],
)
def test_wrong_body_is_refused_by_name(
    change: dict[str, Any], code: str, param: str, said: str
) -> None:
    error = refused("/v2/rerank", {**BODY, **change})
    assert (error.code, error.param) == (code, param)
    assert said in str(error)


def test_query_without_room_for_a_document_is_refused() -> None:
    error = refused("/rerank", {**BODY, "query": "w1 " * 100})
    assert error.code == "sequence_too_long"
    assert "`query`" in str(error)


def test_body_tells_which_format_it_is() -> None:
    assert dialect_of("/rerank", {"query": "q", "texts": ["a"]}) is tei.DIALECT
    assert dialect_of("/rerank", BODY) is rerank.DIALECT
    assert dialect_of("/rerank", {}) is rerank.DIALECT


def test_errors_are_read_by_every_client() -> None:
    body = rerank.error(FAULT)
    assert body["message"] == body["detail"] == body["error"]["message"] == "no items"
    listed = rerank.error(dataclasses.replace(FAULT, status=422))
    assert listed["detail"] == [{"loc": ["body"], "msg": "no items", "type": "empty_items"}]
    assert tei.DIALECT.error(FAULT)["error"] == "no items"
