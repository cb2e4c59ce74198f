"""Text in, scores and rankings out, with the demo model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itemwise import CheckpointError, RequestError, Scorer
from itemwise.checkpoint.locate import locate
from itemwise.config import DEMO_MODEL
from itemwise.request.template import PromptTemplate
from itemwise.request.tokenizer import Tokenizer

QUERY = "desk lamps"
ITEMS = ["Tea kettle", "Brass lamp for the desk", "Desk with drawers", "Lamps for any desk"]


@pytest.fixture(scope="module")
def scorer(cache_folder: str) -> Scorer:
    return Scorer.from_pretrained(compilation_cache_dir=cache_folder, kv_cache_bytes=1 << 23)


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


def test_top_n_cuts_the_ranking(scorer: Scorer) -> None:
    assert scorer.rank(QUERY, ITEMS, top_n=2) == scorer.rank(QUERY, ITEMS)[:2]
    assert scorer.rank(QUERY, ITEMS, top_n=9) == scorer.rank(QUERY, ITEMS)
    for wrong in (0, -1, True):
        with pytest.raises(RequestError) as caught:
            scorer.rank(QUERY, ITEMS, top_n=wrong)
        assert caught.value.code == "invalid_top_n"


def test_equal_items_keep_their_order(scorer: Scorer) -> None:
    ranking = scorer.rank(QUERY, ["Tea kettle", "Desk lamp", "Tea kettle", "Tea kettle"])
    assert [item.index for item in ranking] == [1, 0, 2, 3]


def test_template_is_applied_only_where_asked_for(scorer: Scorer) -> None:
    template = scorer.template
    assert template is not None
    filled = scorer.score(
        template.fill_query(QUERY),
        [template.fill_item(item) for item in ITEMS],
        labels=list(template.labels),
    )
    asked = scorer.score(QUERY, ITEMS, apply_template=True)
    plain = scorer.score(QUERY, ITEMS, labels=list(template.labels))
    assert np.array_equal(filled.scores, asked.scores)
    assert not np.array_equal(plain.scores, asked.scores)


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
