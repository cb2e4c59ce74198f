"""The model that ships in the package ranks words that it never saw, as transformers ranks them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tokenizers

from data import FUNCTION_WORDS, Writer, same_word
from evaluate import FOLDER, compare, fill, itemwise_scores, ndcg, quality, read_template
from evaluate import transformers_scores as scores_of_transformers
from held_out import GradedQuery, held_out_set
from tokens import Encoder, build_tokenizer
from words import (
    HELD_OUT_ADJECTIVES,
    HELD_OUT_LOOKALIKES,
    HELD_OUT_NOUNS,
    HELD_OUT_VERBS,
    TRAINING_WORDS,
)

# torch and transformers warn about themselves when they are imported.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")

MAX_FOLDER_BYTES = 8 << 20
MIN_NDCG = 0.95
MIN_ACCURACY = 0.95
# Largest difference of a label's probability to transformers.
MAX_ERROR_FLOAT32 = 1e-5
MAX_ERROR_BFLOAT16 = 0.02  # to float32; transformers' own bfloat16 is up to 0.06 from it


def held_out_words() -> set[str]:
    lookalikes = [word for words in HELD_OUT_LOOKALIKES.values() for word in words]
    return {*HELD_OUT_NOUNS, *HELD_OUT_ADJECTIVES, *HELD_OUT_VERBS, *lookalikes}


def test_no_held_out_word_was_in_training() -> None:
    taken = [*TRAINING_WORDS, *FUNCTION_WORDS]
    clashes = [(a, b) for a in sorted(held_out_words()) for b in taken if same_word(a, b)]
    assert clashes == []


def test_same_word_knows_plurals_and_nothing_else() -> None:
    for one, other in (("lamp", "lamps"), ("box", "boxes"), ("berries", "berry"), ("key", "keys")):
        assert same_word(one, other)
        assert same_word(other, one)
    for one, other in (("card", "cart"), ("lamp", "lampoon"), ("ring", "string"), ("key", "keies")):
        assert not same_word(one, other)


def test_held_out_set_has_ten_graded_items_a_query() -> None:
    queries = held_out_set()
    assert len(queries) >= 200
    assert queries == held_out_set()
    for graded in queries:
        assert len(graded.items) == len(graded.fractions) == 10
        assert 1 <= len(graded.words) <= 4
        assert {0.0, 1.0} <= set(graded.fractions)
        for word in graded.words:
            assert any(same_word(word, known) for known in held_out_words())


def test_ndcg_is_one_in_order_and_less_otherwise() -> None:
    assert ndcg([0, 0.5, 1], [0.1, 0.2, 0.9]) == pytest.approx(1)
    # 2^4 - 1 = 15 and 2^2 - 1 = 3; the worst order puts them third and second.
    worst = (3 / np.log2(3) + 15 / 2) / (15 + 3 / np.log2(3))
    assert ndcg([0, 0.5, 1], [0.9, 0.2, 0.1]) == pytest.approx(worst)


def test_folder_is_small_and_complete() -> None:
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(files) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "prompt_template.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) <= MAX_FOLDER_BYTES


def test_tokenizer_is_the_one_that_training_builds() -> None:
    stored = json.loads((FOLDER / "tokenizer.json").read_text())
    assert stored == json.loads(build_tokenizer().to_str())


def test_labels_are_one_token_each() -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    for label in read_template(FOLDER)["labels"]:
        assert len(tokenizer.encode(label).ids) == 1


def test_parts_become_the_tokens_of_the_whole() -> None:
    tokenizer = build_tokenizer()
    template = read_template(FOLDER)
    odd = GradedQuery(
        query="  Café-Lampe, 40cm\n",
        words=(),
        items=("", "(USB-C) item: x", "Ünal's 12 query:"),
        fractions=(),
    )
    for graded in (*held_out_set(20), odd):
        query, items = fill(template, graded)
        for item in items:
            whole = tokenizer.encode(query + item).ids
            assert tokenizer.encode(query).ids + tokenizer.encode(item).ids == whole


def test_training_rows_are_tokenised_like_text() -> None:
    import random

    rng = random.Random(0)
    writer, tokenizer = Writer(rng, TRAINING_WORDS), build_tokenizer()
    encoder = Encoder(tokenizer)
    for _ in range(300):
        pair = writer.pair(rng.randint(1, 6), rng.randint(0, 6))
        parts = ("query:", *(p.text for p in pair.query), "\nitem:")
        text = "".join((*parts, *(p.text for p in pair.item), "\nmatch:"))
        assert encoder.encode(pair).ids.tolist() == tokenizer.encode(text).ids


@pytest.fixture(scope="module")
def some_queries() -> list[GradedQuery]:
    return held_out_set()[::6]


@pytest.fixture(scope="module")
def some_scores(some_queries: list[GradedQuery]) -> dict[str, Any]:
    return {
        "bfloat16": itemwise_scores(FOLDER, some_queries, "bfloat16"),
        "float32": itemwise_scores(FOLDER, some_queries, "float32"),
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_unseen_words_are_ranked(
    some_queries: list[GradedQuery], some_scores: dict[str, Any], dtype: str
) -> None:
    found = quality(some_queries, some_scores[dtype])
    assert found["ndcg_at_10"] >= MIN_NDCG
    assert found["accuracy"] >= MIN_ACCURACY


def test_int8_ranks_as_well(some_queries: list[GradedQuery]) -> None:
    scores = itemwise_scores(FOLDER, some_queries, "bfloat16", "int8")
    found = quality(some_queries, scores)
    assert found["ndcg_at_10"] >= MIN_NDCG
    assert found["accuracy"] >= MIN_ACCURACY


@pytest.fixture(scope="module")
def exact_scores(some_queries: list[GradedQuery]) -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return scores_of_transformers(FOLDER, some_queries[:10], "float32")


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", MAX_ERROR_FLOAT32), ("bfloat16", MAX_ERROR_BFLOAT16)]
)
def test_scores_are_those_of_transformers(
    some_scores: dict[str, Any], exact_scores: Any, dtype: str, bound: float
) -> None:
    found = compare(some_scores[dtype][:10], exact_scores)
    assert found["max_abs_difference"] <= bound
    assert found["rankings_that_differ_clearly"] == 0
    if dtype == "float32":
        assert found["rankings_that_differ"] == 0


def test_transformers_reads_the_tokenizer() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(FOLDER)
    ours = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    template = read_template(FOLDER)
    for graded in held_out_set(20):
        query, items = fill(template, graded)
        for text in (query, *items):
            assert theirs.encode(text) == ours.encode(text).ids
