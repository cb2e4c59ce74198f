"""Prompts become the tokens of one text, whatever the tokenizer and wherever the text is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from itemwise.errors import RequestError
from itemwise.request.prompts import (
    EncodedPrompts,
    Names,
    Prompt,
    Segment,
    encode_parts,
    encode_prompts,
)
from itemwise.request.tokenizer import PIECE_CHARS, Tokenizer
from tests.request.kinds import CONTROL, FRAGMENTS, KINDS, backend_of, hard_texts

ALL_KINDS = sorted(KINDS)
# Of the tests that take seconds for each kind, these stay in `make test`.
SOME_KINDS = [
    pytest.param(kind, marks=() if kind in ("qwen", "llama2", "gpt2-prefix") else pytest.mark.slow)
    for kind in ALL_KINDS
]
TOKENIZERS = {kind: Tokenizer(backend_of(kind)) for kind in ALL_KINDS}
PUT_A_SPACE_FIRST = {"llama2", "gpt2-prefix", "unigram", "metaspace"}
PROVED = sorted(set(ALL_KINDS) - {"unknown"})


def references(kind: str) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
    """The library's tokenizer, which reads control tokens, and one that leaves them text."""
    control, text = backend_of(kind), backend_of(kind)
    text.encode_special_tokens = True
    return control, text


REFERENCES = {kind: references(kind) for kind in ALL_KINDS}


def whole(kind: str, text: str, special: bool) -> list[int]:
    """Tokens of a sequence in training: as the library's, begun once, without an end."""
    control, plain = REFERENCES[kind]
    ids = (control if special else plain).encode(text, add_special_tokens=False).ids
    begin = TOKENIZERS[kind].begin
    return ids if ids[: len(begin)] == begin else [*begin, *ids]


def sequences(found: EncodedPrompts) -> list[list[int]]:
    return [[*found.query.tolist(), *item.tolist()] for item in found.items]


def encode(kind: str, shared: str, items: list[str], special: bool = False) -> EncodedPrompts:
    prompts: list[Prompt] = [[Segment(item, special)] for item in items]
    return encode_prompts(TOKENIZERS[kind], [Segment(shared, special)], prompts, max_tokens=None)


texts = (
    st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12)
    .map("".join)
    .filter(
        lambda text: text.isprintable() or not any("\ud800" <= char <= "\udfff" for char in text)
    )
)


@pytest.mark.parametrize("kind", SOME_KINDS)
@given(shared=texts, items=st.lists(texts, min_size=1, max_size=4), special=st.booleans())
def test_tokens_are_those_of_the_whole(
    kind: str, shared: str, items: list[str], special: bool
) -> None:
    expected = [whole(kind, shared + item, special) for item in items]
    if not all(expected):
        with pytest.raises(RequestError, match="no tokens"):
            encode(kind, shared, items, special)
        return
    assert sequences(encode(kind, shared, items, special)) == expected


@pytest.mark.parametrize("kind", [each for each in SOME_KINDS if each.values[0] in PROVED])
@given(shared=texts, item=texts.filter(bool), company=st.lists(texts.filter(bool), max_size=3))
def test_query_does_not_depend_on_the_company(
    kind: str, shared: str, item: str, company: list[str]
) -> None:
    try:
        alone = encode(kind, shared, [item])
        together = encode(kind, shared, [item, *company])
    except RequestError:
        return  # a text without tokens
    assert np.array_equal(alone.query, together.query)
    assert np.array_equal(alone.items[0], together.items[0])


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_200_hard_texts_have_the_tokens_of_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend_of(kind))
    begin = TOKENIZERS[kind].begin
    for shared, item in hard_texts():
        ids = theirs(shared + item, add_special_tokens=False)["input_ids"]
        expected = ids if ids[: len(begin)] == begin else [*begin, *ids]
        if expected:
            assert sequences(encode(kind, shared, [item], special=True)) == [expected]


@pytest.mark.parametrize("kind", ["llama3", "gpt2-prefix"])
def test_a_sequence_begins_once_and_does_not_end(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend_of(kind))
    framed = theirs("the passage")["input_ids"]
    end = [theirs.convert_tokens_to_ids("[SEP]")] if kind == "gpt2-prefix" else []
    for shared, item in [("the pass", "age"), ("<|begin|>the pass", "age"), ("", "the passage")]:
        (found,) = sequences(encode(kind, shared, [item], special=True))
        if not shared.startswith("<") or kind == "llama3":
            assert [*found, *end] == framed
        assert found.count(TOKENIZERS[kind].begin[0]) == 1


LONG = "Does the passage answer the question? " * 400


WORDS = [LONG * 4, "ab1-" * 20_000, "你好，世界" * 10_000]
# WordPiece knows no word of that length, and no space. The library takes quadratic time for the
# word if it is not cut into pieces, as it is not where borders are not known.
ONE_WORD = {"wordpiece": [], "unknown": [" " * 40_000]}


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        pytest.param(*param.values, run, marks=param.marks)
        for param in SOME_KINDS
        for run in [*WORDS, *ONE_WORD.get(str(param.values[0]), ["x" * 50_000, " " * 40_000])]
    ],
)
def test_long_texts_are_encoded_in_pieces_with_the_same_tokens(kind: str, run: str) -> None:
    assert len(run) > PIECE_CHARS
    found = encode(kind, run[:-5], [run[-5:] + " yes", run])
    assert sequences(found) == [whole(kind, t, False) for t in (run + " yes", run[:-5] + run)]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_control_tokens_of_a_template_are_control_and_those_of_users_are_text(kind: str) -> None:
    shared = [Segment("<|im_start|>user\nquery: ", True), Segment("a <|im_end|> b")]
    item = [
        Segment("\nitem: ", True),
        Segment("bread<|im_end|>[SEP]"),
        Segment("<|im_end|>\n<|im_start|>assistant\n", True),
    ]
    (found,) = sequences(encode_prompts(TOKENIZERS[kind], shared, [item], max_tokens=None))
    control, text = REFERENCES[kind]
    ids = {token: control.token_to_id(token) or 0 for token in CONTROL}
    counts = [found.count(ids[token]) for token in CONTROL]
    assert counts == [len(TOKENIZERS[kind].begin), 2, 1, 0]
    middle = found[found.index(ids["<|im_start|>"]) + 1 : found.index(ids["<|im_end|>"])]
    if kind not in PUT_A_SPACE_FIRST:
        spelled = "user\nquery: a <|im_end|> b\nitem: bread<|im_end|>[SEP]"
        assert middle == text.encode(spelled, add_special_tokens=False).ids


def test_control_token_may_go_over_from_the_query_into_the_item() -> None:
    found = encode("qwen", "the passage <|im_", ["end|> yes", "no"], special=True)
    assert sequences(found) == [
        whole("qwen", f"the passage <|im_{i}", True) for i in ("end|> yes", "no")
    ]


@pytest.mark.parametrize("kind", PROVED)
def test_nearly_all_of_the_query_is_shared(kind: str) -> None:
    shared = "query: quiet hotel near the station. " * 20 + "Passage:"
    found = encode(kind, shared, [" Light is scattered", "\nBread", "s"])
    assert len(found.query) >= len(whole(kind, shared, False)) - len("Passage:")


def test_shared_tokens_of_a_template_are_all_in_the_query() -> None:
    shared = [Segment("query: ", True), Segment("quiet hotel"), Segment("\nitem: ", True)]
    items = [[Segment(text), Segment("\nmatch:", True)] for text in ("lamp", "Yes", "123")]
    found = encode_prompts(TOKENIZERS["qwen"], shared, items, max_tokens=None)
    apart = whole("qwen", "query: quiet hotel\nitem:", False)
    assert found.query.tolist() == apart
    assert [len(item) for item in found.items] == [
        len(whole("qwen", f" {text}\nmatch:", False)) for text in ("lamp", "Yes", "123")
    ]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_long_text_is_cut_inside_the_document(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    shared = [Segment("query: hotel item:", True)]
    end = Segment(" <|im_end|>\nmatch: yes", True)
    document = "quiet hotel near 🏨 the station é " * 8
    items = [[Segment(document), end], [Segment("short"), end]]
    found = encode_prompts(tokenizer, shared, items, max_tokens=60, cut=0)
    assert found.cut == [True, False]
    long, short = sequences(found)
    full, small = sequences(encode_prompts(tokenizer, shared, items, max_tokens=None))
    assert short == small
    assert 60 - 8 < len(long) <= 60
    tail = tokenizer.encode("\nmatch: yes")[-3:]
    assert long[-3:] == full[-3:] == tail
    kept = [
        size
        for size in range(len(document))
        if sequences(
            encode_prompts(tokenizer, shared, [[Segment(document[:size]), end]], max_tokens=None)
        )
        == [long]
    ]
    assert kept  # the tokens of a shorter document


def test_a_long_text_is_an_error_that_names_the_item() -> None:
    shared, items = [Segment("the question")], [[Segment(" yes")], [Segment(" no" * 40)]]
    with pytest.raises(
        RequestError, match=r"`documents\[1\]` make \d+ tokens, at most 20"
    ) as caught:
        encode_prompts(
            TOKENIZERS["qwen"], shared, items, max_tokens=20, names=Names("query", "documents")
        )
    assert (caught.value.code, caught.value.param) == ("sequence_too_long", "documents")
    with pytest.raises(RequestError) as caught:
        encode_prompts(TOKENIZERS["qwen"], [Segment("the " * 50)], items, max_tokens=20)
    assert (caught.value.code, caught.value.param) == ("sequence_too_long", "query")


def test_what_cannot_be_cut_is_an_error() -> None:
    with pytest.raises(RequestError, match=r"leaves no room for `items\[0\]`.* at most 5 tokens"):
        encode_prompts(
            TOKENIZERS["qwen"],
            [Segment("query: hotel item:")],
            [[Segment("document"), Segment(" the end of the template is too long", True)]],
            max_tokens=5,
            cut=0,
        )


@pytest.mark.parametrize("cut", [None, 0])
def test_bytes_are_bounded_before_text_is_encoded(
    cut: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = TOKENIZERS["qwen"].with_check(lambda: None)
    bound = 100 * tokenizer.max_token_bytes
    sizes: list[int] = []
    encode_texts = tokenizer.encode_texts

    def counted(texts: list[str], *rest: Any) -> list[list[int]]:
        sizes.extend(map(len, texts))
        return encode_texts(texts, *rest)

    monkeypatch.setattr(tokenizer, "encode_texts", counted)
    items = [[Segment("a")], [Segment("é" * bound)]]
    if cut is None:
        with pytest.raises(RequestError, match=rf"{2 * bound + 4} bytes of text, at most {bound}"):
            encode_prompts(tokenizer, [Segment("abcd")], items, max_tokens=100)
        assert sizes == []
    else:
        found = encode_prompts(tokenizer, [Segment("abcd")], items, max_tokens=100, cut=0)
        assert found.cut == [False, True]
        assert max(sizes) <= bound


@pytest.mark.parametrize(
    ("shared", "item", "where"),
    [("a\ud83d", "b", r"`query` has .* character 1"), ("a", "bc\udc00", r"`items\[0\]` .* 2")],
)
def test_lone_surrogate_is_named(shared: str, item: str, where: str) -> None:
    with pytest.raises(RequestError, match=where):
        encode("qwen", shared, [item])


def test_parts_are_encoded_by_themselves() -> None:
    found = encode_parts(
        TOKENIZERS["llama3"], [Segment("sta")], [[Segment("tion")], [Segment("")]], max_tokens=None
    )
    assert found.query.tolist() == whole("llama3", "sta", False)
    assert [item.tolist() for item in found.items] == [
        whole("llama3", "tion", False)[1:],
        [],
    ]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_no_items_have_no_tokens(kind: str) -> None:
    found = encode(kind, "Does the passage answer? Passage: sta", [])
    assert (len(found.items), found.cut) == (0, [])
    assert len(found.query) > 5


def test_work_is_given_up_between_pieces() -> None:
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise TimeoutError

    tokenizer = TOKENIZERS["qwen"].with_check(stop)
    items = [[Segment("quiet hotel " * 500)] for _ in range(100)]
    with pytest.raises(TimeoutError):
        encode_prompts(tokenizer, [Segment("query:")], items, max_tokens=None)
    assert calls == 3
