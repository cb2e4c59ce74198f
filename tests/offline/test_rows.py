"""Rows through a real engine: the bits of the server, whatever the batch."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itemwise.config import ServerConfig
from itemwise.errors import ConfigError, NotFiniteError
from itemwise.offline.rows import RowForm, RowScorer, Unread
from itemwise.request import calls, prompts
from itemwise.scorer import Scorer
from tests.server.fakes import get, running_server, send, wait_until

QUERIES = ("desk lamp", "red kettle", "chair")
ITEMS = ("Brass lamp", "Tea kettle", "Oak chair with arms", "", "Lamp oil " * 40)
RANK = RowForm(query_column="query", item_column="item")
LABELS = {"labels": [" yes", " no"], "apply_softmax": True}
SCORE = RowForm(query_column="query", item_column="item", fields=LABELS)
PAIRS = [{"query": query, "item": item} for query in QUERIES for item in ITEMS]
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/score", {"query": "desk lamp", "items": [*ITEMS], **LABELS}),
    ("/v1/score", {"query": "lamp", "items": ["a " * 9000], **LABELS, "truncate": True}),
    ("/v1/score", {"text_1": "desk lamp", "text_2": ["Tea kettle"]}),
    ("/v1/score", {"text_1": "desk lamp", "text_2": ["Tea kettle", "oil " * 9000]}),
    ("/v1/rerank", {"query": "desk lamp", "documents": [*ITEMS], "return_documents": True}),
    ("/v1/rerank", {"query": "lamp", "texts": ["Tea kettle", "oil " * 9000]}),
    ("/generative_scoring", {"query": "lamp", "items": ["oil"], "label_token_ids": [5, 6]}),
]


@pytest.fixture(scope="module")
def scorer(small: dict[str, Any]) -> Scorer:
    return Scorer.from_pretrained(**{**small, "max_multi_item_seq_len": 200})


@pytest.fixture(scope="module")
def ranked(scorer: Scorer) -> list[dict[str, Any]]:
    return RowScorer(scorer, RANK)(PAIRS)


@pytest.fixture(scope="module")
def scored(scorer: Scorer) -> list[dict[str, Any]]:
    return RowScorer(scorer, SCORE)(PAIRS)


@pytest.fixture(scope="module")
def online(scorer: Scorer) -> dict[str, list[Any]]:
    """What a server with the same engine answers: to `BODIES`, and to rankings of the pairs."""
    with running_server(ServerConfig(), lambda: scorer) as url:
        wait_until(lambda: get(f"{url}/health").status_code == 200)

        def answer(path: str, body: Any) -> Any:
            return send("POST", f"{url}{path}", json=body).json()

        return {
            "bodies": [answer(path, body) for path, body in BODIES],
            "ranked": [answer("/v1/rerank", {"query": q, "documents": [*ITEMS]}) for q in QUERIES],
            "scored": [
                answer("/v1/score", {"query": q, "items": ITEMS, **LABELS}) for q in QUERIES
            ],
        }


def test_pairs_have_the_bits_of_the_server(
    online: dict[str, list[Any]], ranked: list[dict[str, Any]], scored: list[dict[str, Any]]
) -> None:
    expected = []
    for answer in online["ranked"]:
        scores = {each["index"]: each["relevance_score"] for each in answer["results"]}
        expected += [scores[i] for i in range(len(ITEMS))]
    assert [row["score"] for row in ranked] == expected
    expected = [row for answer in online["scored"] for row in answer["scores"]]
    assert [row["scores"] for row in scored] == expected


def test_bodies_have_the_answers_of_the_server(
    scorer: Scorer, online: dict[str, list[Any]]
) -> None:
    rows = [RowScorer(scorer, RowForm(path), "itemwise/demo")([body])[0] for path, body in BODIES]
    for answer, row in zip(online["bodies"], rows, strict=True):
        if isinstance(answer, dict):
            answer = {name: answer[name] for name in answer.keys() - {"id", "created"}}
        assert row["result"] == answer
        assert row["error"] is None
    assert [row["truncated"] for row in rows] == [False, True, False, True, False, True, False]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), window=st.integers(1, 15))
def test_results_do_not_depend_on_order_or_windows(
    scorer: Scorer,
    ranked: list[dict[str, Any]],
    scored: list[dict[str, Any]],
    seed: int,
    window: int,
) -> None:
    order = random.Random(seed).sample(range(len(PAIRS)), len(PAIRS))
    for form, expected in ((RANK, ranked), (SCORE, scored)):
        score = RowScorer(scorer, form)
        for begin in range(0, len(order), window):
            part = order[begin : begin + window]
            assert score([PAIRS[i] for i in part]) == [expected[i] for i in part]


def test_rows_of_one_query_share_its_tokens(scorer: Scorer) -> None:
    query = "a lamp for the desk " * 8
    rows = [{"query": query, "item": f"item {i}"} for i in range(50)]
    scorer.engine.forget_prefixes()
    before = scorer.info()["computed_tokens"]
    score = RowScorer(scorer, RANK)
    score(rows)
    computed = scorer.info()["computed_tokens"] - before
    assert score.num_items == 50
    assert computed < score.num_tokens / 4


BAD: list[Any] = [
    Unread("invalid_json: line 1"),
    {"query": "desk lamp"},
    {"query": "desk lamp", "item": None},
    {"query": float("nan"), "item": "Tea kettle"},
    {"query": "desk lamp", "item": 7},
    {"query": "desk lamp", "item": "\ud800"},
    {"query": "desk \ud800", "item": "Tea kettle"},
    {"query": "desk lamp", "item": ["Tea", "kettle"]},
    {"query": ["desk lamp"], "item": "Tea kettle"},
    {"query": "lamp " * 9000, "item": "Tea kettle"},
]


@pytest.mark.parametrize("form", [RANK, SCORE])
def test_bad_rows_fail_alone(
    scorer: Scorer, ranked: list[dict[str, Any]], scored: list[dict[str, Any]], form: RowForm
) -> None:
    mixed = [row for pair in zip(PAIRS, BAD, strict=False) for row in pair] + PAIRS[len(BAD) :]
    results = RowScorer(scorer, form)(mixed)
    bad = [results[i] for i in range(1, 2 * len(BAD), 2)]
    good = [result for result in results if result not in bad]
    assert good == (ranked if form is RANK else scored)
    for row, result in zip(BAD, bad, strict=True):
        code = result["error"].split(":")[0]
        assert result == {form.columns[0]: None, "truncated": None, "error": result["error"]}
        assert code.startswith(("invalid_", "missing_", "sequence_too_long", "mixed_")), (row, code)


def test_item_that_is_too_long_is_cut_or_fails_alone(scorer: Scorer) -> None:
    rows = [{"query": "desk lamp", "item": item} for item in ("Tea kettle", "oil " * 9000)]
    first, second = RowScorer(scorer, RANK)(rows)
    assert (first["truncated"], second["truncated"]) == (False, True)
    first, second = RowScorer(scorer, SCORE)(rows)
    assert first["error"] is None
    assert second["error"].startswith("sequence_too_long")
    first, second = RowScorer(scorer, replace(SCORE, fields={**LABELS, "truncate": True}))(rows)
    assert (first["truncated"], second["truncated"]) == (False, True)


def test_item_without_a_number_fails_alone(
    scorer: Scorer, scored: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = scored[1]["scores"]

    def finite(result: Any, name: str = "items") -> Any:
        if any(row.tolist() == pytest.approx(bad, rel=1e-6) for row in result.scores):
            raise NotFiniteError("planted")
        return result

    monkeypatch.setattr(calls, "finite", finite)
    results = RowScorer(scorer, SCORE)(PAIRS)
    assert results[1] == {"scores": None, "truncated": None, "error": "score_not_finite: planted"}
    assert results[:1] + results[2:] == scored[:1] + scored[2:]


def test_tokenizer_of_which_nothing_is_proved_gives_the_same_bits(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scorer.tokenizer is not None
    monkeypatch.setattr(type(scorer.tokenizer), "last_border", lambda *_: None)
    monkeypatch.setattr(type(scorer.tokenizer), "has_borders", False)
    # Stands in for merges that look far back: where the query ends depends on what follows.
    real = prompts._num_common
    monkeypatch.setattr(prompts, "_num_common", lambda a, b: max(1, real(a, b) - len(b) % 4))
    query = "a brass lamp for the desk or the wall of a small room with a green door"
    items = ("s", "shade", " for reading", ".", " and a chair to sit on", " or two of them")
    rows = [{"query": query, "item": item} for item in items]
    alone = [RowScorer(scorer, SCORE)([row])[0] for row in rows]
    assert RowScorer(scorer, SCORE)(rows) == alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_column": "query"}, "go together"),
        ({"endpoint": "/v1/nothing"}, "expected one of .*/v1/rerank"),
        (
            {"endpoint": "/generative_scoring", "query_column": "q", "item_column": "i"},
            "with `query_column`",
        ),
    ],
)
def test_form_that_means_nothing_is_refused(arguments: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RowForm(**arguments)
