"""Rankings from logits: order, ties, numbers that are none, and prompts of several queries."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from itemwise.errors import NotFiniteError, RequestError
from itemwise.request.calls import Prepared
from itemwise.request.check import RequestLimits
from itemwise.request.profiles import Profile
from itemwise.request.ranking import RankCall, Ranking
from itemwise.request.read_out import softmax_of_labels
from itemwise.request.tools import PromptTools
from itemwise.types import ScoreResult
from tests.server.fakes import word_tokenizer

PROFILE = Profile(
    "test", "planted", "w90 {query} w91", " {item} w92", ("w7", "w8"), label_ids=(7, 8)
)
LIMITS = RequestLimits(1000, max_seq_len=64)


def prepared(call: RankCall, limits: RequestLimits = LIMITS) -> Prepared[Ranking]:
    return call.prepare(PromptTools(limits, word_tokenizer(), profile=PROFILE))


def ranked(rows: list[list[float]]) -> Ranking:
    logits = np.array(rows, np.float32)
    call = RankCall("w1", [f"w{i}" for i in range(len(rows))])
    return prepared(call).finish(ScoreResult(softmax_of_labels(logits, 1.0), 9, logits=logits))


def test_order_is_that_of_margins_where_scores_are_all_one() -> None:
    ranking = ranked([[60, 0], [80, 0], [70, 0], [80, 0], [90, 0]])
    assert set(ranking.scores) == {1.0}
    assert ranking.order() == [4, 1, 3, 2, 0]
    assert ranking.order(2) == [4, 1]


def test_equal_documents_keep_their_order() -> None:
    assert ranked([[1, 2], [3, 1], [1, 2], [3, 1]]).order() == [1, 3, 0, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_document_without_a_number_is_named(bad: float) -> None:
    with pytest.raises(NotFiniteError, match=r"`documents\[1\]`"):
        ranked([[1, 2], [bad, 1]])


def test_prompt_is_split_before_the_document() -> None:
    request = prepared(RankCall("w1 w2", ["w3", "w4 w5"])).request
    whole = [[*request.query.tolist(), *item.tolist()] for item in request.items]
    assert whole == [[0, 90, 1, 2, 91, 3, 92], [0, 90, 1, 2, 91, 4, 5, 92]]
    assert request.query.tolist()[:4] == [0, 90, 1, 2]  # the last word might go on
    assert request.labels == ((7, 8), (7, 8))
    assert request.apply_softmax


def test_delimiter_stands_between_query_and_document() -> None:
    limits = dataclasses.replace(LIMITS, delimiter=999)
    request = prepared(RankCall("w1 w2", ["w3", "w4 " * 100]), limits).request
    assert request.query.tolist() == [0, 90, 1, 2, 91]
    assert request.items[0].tolist() == [3, 92]
    assert request.items[1].tolist()[-1] == 92  # the template's end is never cut
    assert len(request.query) + 1 + len(request.items[1]) <= 64


def test_documents_may_have_a_query_each() -> None:
    request = prepared(RankCall(["w1", "w2"], ["w3", "w4"])).request
    whole = [[*request.query.tolist(), *item.tolist()] for item in request.items]
    assert whole == [[0, 90, 1, 91, 3, 92], [0, 90, 2, 91, 4, 92]]
    same = prepared(RankCall(["w1", "w1"], ["w3", "w4"])).request
    assert same == prepared(RankCall("w1", ["w3", "w4"])).request


def test_lone_surrogate_is_named() -> None:
    with pytest.raises(RequestError, match=r"`documents\[1\]` has a lone surrogate at character 2"):
        prepared(RankCall("w1", ["w2", "w3\ud800"]))


def test_model_without_a_profile_says_why() -> None:
    with pytest.raises(RequestError, match=r"cannot rank: it has no tokenizer") as caught:
        RankCall("w1", ["w2"]).prepare(PromptTools(LIMITS, None, profile="it has no tokenizer"))
    assert caught.value.code == "no_profile"
