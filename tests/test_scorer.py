"""Text in, scores and rankings out, with the demo model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itemwise import CheckpointError, RequestError, Scorer
from itemwise.checkpoint.locate import locate
from itemwise.config import DEMO_MODEL, Tokenize
from itemwise.request.calls import ScoreCall
from itemwise.request.template import PromptTemplate
from itemwise.request.tokenizer import Tokenizer
from itemwise.types import ScoreRequest
from tests.conftest import DEMO_POOL

QUERY = "desk lamps"
ITEMS = ["Tea kettle", "Brass lamp for the desk", "Desk with drawers", "Lamps for any desk"]


@pytest.fixture(scope="module")
def scorer(cache_folder: str) -> Scorer:
    return Scorer.from_pretrained(compilation_cache_dir=cache_folder, kv_cache_bytes=DEMO_POOL)


def test_ranking_is_the_scores_in_order(scorer: Scorer) -> None:
    scores = np.asarray(scorer.score(QUERY, ITEMS, apply_template=True, apply_softmax=True).scores)[
        :, 0
    ]
    ranking = scorer.rank(QUERY, ITEMS)
    assert [item.index for item in ranking] == np.argsort(-scores).tolist()
    assert [item.text for item in ranking] == [ITEMS[item.index] for item in ranking]
    # The prompt is tokenised as a whole and split elsewhere, which may move the last bits.
    assert np.allclose([item.score for item in ranking], np.sort(scores)[::-1], atol=1e-6)
    assert {item.index for item in ranking[:2]} == {1, 3}
    assert ranking[-1].index == 0


def test_ranking_does_not_depend_on_company(scorer: Scorer) -> None:
    together = {item.text: item for item in scorer.rank(QUERY, [*ITEMS, "Lamps for any attic"])}
    for text in ITEMS:
        (alone,) = scorer.rank(QUERY, [text])
        assert (alone.score, alone.margin) == (together[text].score, together[text].margin)


def test_rerank_has_the_form_of_a_cross_encoder(scorer: Scorer) -> None:
    ranking = scorer.rank(QUERY, ITEMS, top_n=2)
    assert scorer.rerank(QUERY, ITEMS, top_k=2, return_documents=True) == [
        {"corpus_id": item.index, "score": item.score, "text": item.text} for item in ranking
    ]
    assert scorer.rerank(QUERY, ITEMS, top_k=1) == [
        {"corpus_id": ranking[0].index, "score": ranking[0].score}
    ]


def test_long_text_is_cut_and_said_so(scorer: Scorer) -> None:
    ranking = scorer.rank(QUERY, [*ITEMS, "Brass lamp for the desk " * 4000])
    assert [item.index for item in ranking if item.cut] == [4]
    (alone,) = scorer.rank(QUERY, [ITEMS[1]])
    assert alone.score in {item.score for item in ranking}


@pytest.fixture(scope="module")
def small_pool(cache_folder: str) -> Scorer:
    """A scorer whose pages hold fewer tokens than the model allows."""
    return Scorer.from_pretrained(
        compilation_cache_dir=cache_folder, kv_cache_bytes=1 << 21, skip_self_check=True
    )


def test_long_text_is_cut_to_what_the_pages_hold(small_pool: Scorer) -> None:
    room = small_pool.engine.max_seq_len
    assert room == 128 * small_pool.info()["pages"]["total"] < 2048
    for words in range(8):  # the query ends in different places of a page
        query = QUERY + " near" * 25 * words
        ranking = small_pool.rank(query, [*ITEMS, "Brass lamp for the desk " * 4000])
        assert [item.index for item in ranking if item.cut] == [4]
    long = {"query": QUERY, "items": ["Brass lamp " * 1000], "apply_template": True}
    with pytest.raises(RequestError, match=f"make [0-9]+ tokens, at most {room} are") as caught:
        small_pool.prepare(long, special_tokens="control")
    assert caught.value.code == "sequence_too_long"
    assert small_pool.run([small_pool.prepare(long, truncate=True)])


def test_setting_cuts_long_items_where_a_request_does_not_say(
    small_pool: Scorer, cache_folder: str
) -> None:
    cutting = Scorer.from_pretrained(
        compilation_cache_dir=cache_folder,
        kv_cache_bytes=1 << 21,
        skip_self_check=True,
        allow_auto_truncate=True,
    )
    fields = {"query": QUERY, "items": ["Brass lamp " * 4000, "lamp"], "labels": [" yes"]}
    result = cutting.run_call(ScoreCall(fields))
    asked = small_pool.run_call(ScoreCall({**fields, "truncate": True}))
    assert result.cut_items == asked.cut_items == (0,)
    assert np.array_equal(result.scores, asked.scores)
    with pytest.raises(RequestError, match=r"`items\[0\]`"):
        cutting.run_call(ScoreCall({**fields, "truncate": False}))


def test_top_n_cuts_the_ranking(scorer: Scorer) -> None:
    assert scorer.rank(QUERY, ITEMS, top_n=2) == scorer.rank(QUERY, ITEMS)[:2]
    assert scorer.rank(QUERY, ITEMS, top_n=9) == scorer.rank(QUERY, ITEMS)
    two: Any = np.int64(2)
    assert scorer.rank(QUERY, ITEMS, top_n=two) == scorer.rank(QUERY, ITEMS)[:2]
    wrong: Any
    for wrong in (0, -1, True, 2.5, "2"):
        with pytest.raises(RequestError) as caught:
            scorer.rank(QUERY, ITEMS, top_n=wrong)
        assert caught.value.code == "invalid_top_n"


@pytest.mark.parametrize(
    ("query", "items", "said"),
    [
        (QUERY, "Tea kettle", "`items` is one text, expected a list of texts"),
        (QUERY, ["Tea kettle", float("nan")], r"`items\[1\]` has the type float, expected text"),
        (QUERY, [None], r"`items\[0\]` has the type NoneType"),
        (QUERY, [["Tea", "kettle"]], r"`items\[0\]` has the type list"),
        (None, ["Tea kettle"], "`query` has the type NoneType, expected text"),
        ([QUERY, 7], ["Tea kettle"] * 2, r"`query\[1\]` has the type int"),
        (QUERY, [], "`items` is empty"),
    ],
)
def test_what_is_no_list_of_texts_cannot_be_ranked(
    scorer: Scorer, query: Any, items: Any, said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        scorer.rank(query, items)


def test_equal_items_keep_their_order(scorer: Scorer) -> None:
    ranking = scorer.rank(QUERY, ["Tea kettle", "Desk lamp", "Tea kettle", "Tea kettle"])
    assert [item.index for item in ranking] == [1, 0, 2, 3]


def test_template_is_applied_only_where_asked_for(scorer: Scorer) -> None:
    template = scorer.template
    assert template is not None
    filled = scorer.prepare(
        query=template.query.replace("{query}", QUERY),
        items=[template.item.replace("{item}", item) for item in ITEMS],
        labels=list(template.labels),
    )
    asked = scorer.prepare(query=QUERY, items=ITEMS, apply_template=True)
    plain = scorer.prepare(query=QUERY, items=ITEMS, labels=list(template.labels))
    assert sequences(filled) == sequences(asked) != sequences(plain)
    assert filled.labels == asked.labels


def sequences(request: ScoreRequest) -> list[list[int]]:
    return [[*request.query.tolist(), *item.tolist()] for item in request.items]


# The query ends in a space, inside a word, where words end, and is one word.
TEXTS = [
    ("Passage: ", ["light is scattered", "Bread", "  x"]),
    ("Passage: sta", ["tion near", "nd by", " and", ""]),
    ("Does it answer? Passage:", [" Light", "\nBread", "yes", ""]),
    ("lamp", [" desk", "shade", ""]),
]


@pytest.mark.parametrize(("query", "items"), TEXTS)
@pytest.mark.parametrize("item_first", [False, True])
def test_text_scores_have_the_same_bits_alone_and_together(
    scorer: Scorer, query: str, items: list[str], item_first: bool
) -> None:
    def bits(items: list[str]) -> list[list[int]]:
        result = scorer.score(query, items, labels=[" yes", " no"], item_first=item_first)
        found: list[list[int]] = np.asarray(result.scores).view(np.int32).tolist()
        return found

    assert bits(items) == [bits([item])[0] for item in items] == bits(items[::-1])[::-1]


@pytest.mark.parametrize(("query", "items"), TEXTS)
def test_text_is_scored_as_the_tokens_of_one_text(
    scorer: Scorer, query: str, items: list[str]
) -> None:
    assert scorer.tokenizer is not None
    expected = [scorer.tokenizer.encode(query + item) for item in items]
    request = scorer.prepare(query=query, items=items, labels=[" yes", " no"])
    assert sequences(request) == expected
    first = scorer.prepare(query=query, items=items, labels=[" yes"], item_first=True)
    whole = [[*item.tolist(), *first.query.tolist()] for item in first.items]
    assert whole == [scorer.tokenizer.encode(item + query) for item in items]


def test_whole_texts_share_as_much_of_the_prefix_as_parts_do(scorer: Scorer) -> None:
    query = "a quiet hotel near the station " * 20

    def num_computed(tokenize: Tokenize) -> int:
        request = scorer.prepare(
            query=query, items=ITEMS * 10, apply_template=True, tokenize=tokenize
        )
        return scorer.engine.cost(request)

    assert num_computed("whole") == num_computed("parts")


def test_the_engine_says_how_texts_are_read(scorer: Scorer) -> None:
    assert scorer.engine.config.tokenize == "whole"
    fields: dict[str, Any] = {"query": "Passage: sta", "items": ["tion"], "labels": [" yes"]}
    parts = scorer.prepare(fields, tokenize="parts")
    assert scorer.prepare(fields) != parts
    assert scorer.score("Passage: sta", ["tion"], labels=[" yes"], tokenize="parts").prompt_tokens


def test_template_of_a_file_takes_the_place_of_the_own_one(scorer: Scorer) -> None:
    other = Scorer(
        scorer.engine, scorer.tokenizer, PromptTemplate("{query}", "{item}", (" no", " yes"))
    )
    asked = other.score(QUERY, ITEMS, apply_template=True)
    assert np.array_equal(asked.scores, scorer.score(QUERY, ITEMS, labels=[" no", " yes"]).scores)


def test_prepare_takes_a_mapping_or_keywords(scorer: Scorer) -> None:
    fields: dict[str, Any] = {"query": QUERY, "items": ITEMS, "apply_template": True}
    expected = scorer.prepare(**fields)
    assert scorer.prepare(fields) == expected
    assert scorer.prepare({**fields, "model": "of a body"}) == expected
    with pytest.raises(TypeError, match="`apply_softmax_`"):
        scorer.prepare(**fields, apply_softmax_=True)


def test_tokenizer_of_another_folder_takes_the_place_of_the_own_one(
    make_checkpoint: Callable[[str], Path], small: dict[str, Any]
) -> None:
    folder = str(make_checkpoint("tiny-qwen3"))
    with pytest.raises(CheckpointError, match="has no tokenizer.json, expected the folder or"):
        Scorer.from_pretrained(folder, tokenizer_path=folder, **small)
    other = Scorer.from_pretrained(folder, tokenizer_path=DEMO_MODEL, **small)
    demo = Tokenizer.from_folder(locate(DEMO_MODEL))
    assert demo is not None
    assert other.tokenizer is not None
    assert other.tokenizer.encode(QUERY) == demo.encode(QUERY)
