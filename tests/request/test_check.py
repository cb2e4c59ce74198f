"""Raw fields become a checked request, or a fault that names its field and index."""

from __future__ import annotations

import enum
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, processors

from itemwise.errors import RequestError
from itemwise.request.check import RequestLimits, check_request
from itemwise.request.template import PromptTemplate
from itemwise.request.tokenizer import Tokenizer
from itemwise.types import ScoreRequest, TokenLists

VOCAB_SIZE = 300
DELIMITER = 299
LIMITS = RequestLimits(VOCAB_SIZE, max_seq_len=16, max_items=4)
WITH_DELIMITER = RequestLimits(VOCAB_SIZE, max_seq_len=16, max_items=4, delimiter=DELIMITER)
GOOD: dict[str, Any] = {"query": [1, 2], "items": [[3], [], [4, 5]], "label_token_ids": [7, 8]}
TEXT: dict[str, Any] = {"query": "ab", "items": ["c", ""], "labels": ["x", "y"]}
TEMPLATE = PromptTemplate("<{query}>", "({item})", ("+", "-"))
NO = 298
CONTROL = 297


def character_tokenizer() -> Tokenizer:
    """Tokens are characters, by their code, and `no`; `^` begins sequences, `#c#` controls."""
    codes = {**{chr(code): code for code in range(400)}, "no": NO, "#c#": CONTROL}
    backend = tokenizers.Tokenizer(models.BPE(codes, [("n", "o")]))
    backend.add_special_tokens(["#c#"])
    backend.post_processor = processors.TemplateProcessing(
        single="^ $A", special_tokens=[("^", ord("^"))]
    )
    return Tokenizer(backend)


TOKENIZER = character_tokenizer()


def check(
    fields: dict[str, Any],
    limits: RequestLimits = LIMITS,
    template: PromptTemplate | None = TEMPLATE,
) -> ScoreRequest:
    return check_request(fields, limits, TOKENIZER, template).request


def fault(
    fields: dict[str, Any],
    limits: RequestLimits = LIMITS,
    template: PromptTemplate | None = TEMPLATE,
) -> RequestError:
    with pytest.raises(RequestError) as caught:
        check(fields, limits, template)
    return caught.value


def test_token_ids_pass_unchanged() -> None:
    assert check(GOOD) == ScoreRequest((1, 2), ((3,), (), (4, 5)), ((7, 8),) * 3)


def test_delimiter_is_left_to_the_engine() -> None:
    assert check(GOOD, WITH_DELIMITER) == check(GOOD)


def test_text_begins_once_and_is_shared_up_to_its_last_border() -> None:
    request = check(TEXT)
    assert request.query.tolist() == list(b"^a")
    assert request.items == TokenLists.of([b"bc", b"b"])
    assert request.labels == (tuple(b"xy"),) * 2


def test_query_and_item_are_tokenised_as_one_text() -> None:
    fields = {**TEXT, "query": "an", "items": ["o", "a"]}
    assert check(fields).query.tolist() == list(b"^a")
    assert check(fields).items == TokenLists.of([[NO], b"na"])


def test_parts_are_tokenised_by_themselves_where_asked_for() -> None:
    fields = {**TEXT, "query": "an", "items": ["o", ""]}
    apart = ScoreRequest(list(b"^an"), [list(b"o"), []], (tuple(b"xy"),) * 2)
    assert check({**fields, "tokenize": "parts"}) == apart
    parts = replace(LIMITS, tokenize="parts")
    assert check(fields, parts) == apart
    assert check({**fields, "tokenize": "whole"}, parts) == check(fields) != apart


def test_nothing_merges_across_a_delimiter() -> None:
    fields = {**TEXT, "query": "an", "items": ["o"]}
    request = check(fields, WITH_DELIMITER)
    assert (request.query.tolist(), request.items) == (list(b"^an"), TokenLists.of([b"o"]))


def test_with_the_item_first_the_item_begins_the_text() -> None:
    fields = {**TEXT, "query": "ob", "items": ["an", ""], "item_first": True}
    whole, apart = check(fields), check({**fields, "tokenize": "parts"})
    assert (whole.query.tolist(), apart.query.tolist()) == ([], list(b"ob"))
    assert whole.items == TokenLists.of([[*b"^a", NO, *b"b"], b"^ob"])
    assert apart.items == TokenLists.of([b"^an", b"^"])


@pytest.mark.parametrize(
    ("changes", "limits", "is_control"),
    [
        ({}, LIMITS, True),
        ({"special_tokens": "text"}, LIMITS, False),
        ({"apply_template": True}, LIMITS, False),
        ({"apply_template": True, "special_tokens": "control"}, LIMITS, True),
        ({}, replace(LIMITS, special_tokens="text"), False),
        ({"apply_template": True}, replace(LIMITS, special_tokens="control"), True),
        ({"special_tokens": "auto"}, replace(LIMITS, special_tokens="text"), True),
    ],
)
def test_control_tokens_of_texts(
    changes: dict[str, Any], limits: RequestLimits, is_control: bool
) -> None:
    template = PromptTemplate("#c#{query}", "{item}", ("+", "-"))
    request = check({**TEXT, "items": ["a#c#b"], **changes}, limits, template)
    (row,) = request.items
    assert (CONTROL in row) is is_control
    assert (CONTROL in request.query) is ("apply_template" in changes)


def test_template_is_applied_where_asked_for() -> None:
    fields = {"query": "ab", "items": ["c", ""], "apply_template": True}
    request = check(fields)
    assert request.query.tolist() == list(b"^<ab>")
    assert request.items == TokenLists.of([b"(c)", b"()"])
    assert request.labels == (tuple(b"+-"),) * 2
    assert check({**fields, "labels": ["x"]}).labels == ((ord("x"),),) * 2
    assert check({**fields, "label_token_ids": [7]}).labels == ((7,),) * 2
    assert check({**TEXT, "apply_template": False}) == check(TEXT)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"apply_template": 1}, "invalid_apply_template_type", "apply_template"),
        ({"item_first": True}, "item_first_with_template", "item_first"),
        ({"query": [1]}, "mixed_input_types", "query"),
        ({"items": [[1]]}, "mixed_input_types", "items"),
    ],
)
def test_what_a_template_cannot_do(change: dict[str, Any], code: str, param: str) -> None:
    error = fault({**TEXT, "apply_template": True, **change})
    assert (error.code, error.param) == (code, param)


def test_model_without_a_template() -> None:
    assert fault({**TEXT, "apply_template": True}, template=None).code == "no_template"


def test_labels_as_text_go_with_items_as_ids() -> None:
    fields = {"query": [1], "items": [[2]], "labels": ["x"]}
    assert check(fields).labels == ((ord("x"),),)


def test_labels_may_differ_per_item() -> None:
    ids = [[7], [8, 9], [7]]
    assert check({**GOOD, "label_token_ids": ids}).labels == ((7,), (8, 9), (7,))
    texts = {**TEXT, "labels": [["x"], ["y", "x"]]}
    assert check(texts).labels == (tuple(b"x"), tuple(b"yx"))


def test_other_fields_and_their_defaults() -> None:
    plain = check({**GOOD, "apply_softmax": None, "item_first": None, "temperature": None})
    assert (plain.apply_softmax, plain.item_first, plain.temperature) == (False, False, 1.0)
    given = check({**GOOD, "apply_softmax": True, "item_first": True, "temperature": 2})
    assert (given.apply_softmax, given.item_first, given.temperature) == (True, True, 2.0)


def test_unknown_fields_are_ignored() -> None:
    assert check({**GOOD, "stream": True, "user": "x"}) == check(GOOD)


class _Token(enum.IntEnum):
    YES = 7


@pytest.mark.parametrize(
    "fields",
    [
        {"query": np.array([1, 2])},
        {"query": (1, np.int64(2))},
        {"items": [np.array([3], np.uint8), (), [np.int32(4), 5]]},
        {"items": ([3], [], [4, 5])},
        {"label_token_ids": np.array([7, 8])},
        {"label_token_ids": np.array([[7, 8]] * 3)},
        {"label_token_ids": (_Token.YES, 8)},
    ],
)
def test_arrays_and_tuples_are_taken_for_lists(fields: dict[str, Any]) -> None:
    request = check({**GOOD, **fields})
    assert request == check(GOOD)
    assert request.query.dtype == request.items.tokens.dtype == np.int32
    assert {type(token) for ids in request.labels for token in ids} == {int}


FAULTS = [
    # code, changed fields, param, what the message must name
    ("missing_query", {"query": None}, "query", "`query`"),
    ("empty_query", {"query": []}, "query", "`query`"),
    ("empty_query", {**TEXT, "query": ""}, "query", "`query`"),
    ("invalid_query_type", {"query": 3}, "query", "an integer"),
    ("invalid_query_type", {"query": {"a": 1}}, "query", "an object"),
    ("invalid_query_type", {**TEXT, "query": "a\ud800"}, "query", "character 1"),
    ("invalid_token_id_type", {"query": [1, "2"]}, "query", "`query[1]`"),
    ("invalid_token_id_type", {"query": [1.0]}, "query", "a float"),
    ("invalid_token_id_type", {"query": [[1]]}, "query", "a list"),
    ("missing_items", {"items": None}, "items", "`items`"),
    ("empty_items", {"items": []}, "items", "`items`"),
    ("invalid_items_type", {"items": "abc"}, "items", "text"),
    ("invalid_items_type", {"items": {}}, "items", "an object"),
    ("invalid_items_type", {"items": [3, 4]}, "items", "`items[0]`"),
    ("invalid_items_type", {"items": [[3], None]}, "items", "`items[1]` is null"),
    ("invalid_items_type", {**TEXT, "items": ["a", "\udc00"]}, "items", "`items[1]`"),
    ("invalid_token_id_type", {"items": [[3], [4, True]]}, "items", "`items[1][1]` is a boolean"),
    ("invalid_token_id_type", {"items": [np.array([1.5])]}, "items", "`items[0][0]`"),
    ("invalid_token_id_type", {"items": [np.array([True])]}, "items", "`items[0][0]`"),
    ("mixed_input_types", {"items": ["a"]}, "items", "`items[0]`"),
    ("mixed_input_types", {"query": "a"}, "items", "`query`"),
    ("mixed_input_types", {"items": [[3], "a"]}, "items", "`items[1]`"),
    ("too_many_items", {"items": [[3]] * 5}, "items", "5 items, at most 4"),
    ("missing_label_token_ids", {"label_token_ids": None}, "label_token_ids", "`labels`"),
    ("empty_label_token_ids", {"label_token_ids": []}, "label_token_ids", "empty"),
    ("empty_label_token_ids", {"label_token_ids": [[7], [], [7]]}, "label_token_ids", "[1]"),
    ("empty_label_token_ids", {**TEXT, "labels": []}, "labels", "empty"),
    ("invalid_label_token_ids_length", {"label_token_ids": [[7]] * 2}, None, "2 lists for 3 items"),
    ("invalid_label_token_ids_length", {**TEXT, "labels": [["x"]]}, None, "1 lists for 2 items"),
    ("invalid_token_id_type", {"label_token_ids": "78"}, "label_token_ids", "text"),
    ("invalid_token_id_type", {"label_token_ids": 7}, "label_token_ids", "an integer"),
    ("invalid_token_id_type", {"label_token_ids": [7, False]}, "label_token_ids", "[1]"),
    ("invalid_token_id_type", {"label_token_ids": [[7], 8, [9]]}, "label_token_ids", "[1]"),
    ("invalid_token_id_type", {"label_token_ids": ["x"]}, "label_token_ids", "[0]"),
    ("invalid_labels_type", {**TEXT, "labels": "x"}, "labels", "text"),
    ("invalid_labels_type", {**TEXT, "labels": [7]}, "labels", "`labels[0]`"),
    ("invalid_labels_type", {**TEXT, "labels": ["\ud800"]}, "labels", "`labels[0]`"),
    ("conflicting_labels", {"labels": ["x"]}, "labels", "`label_token_ids`"),
    ("duplicate_labels", {"label_token_ids": [7, 8, 7]}, "label_token_ids", "token id 7"),
    ("duplicate_labels", {"label_token_ids": [[7], [8, 8], [7]]}, "label_token_ids", "[1]"),
    ("duplicate_labels", {**TEXT, "labels": ["x", "x"]}, "labels", "`labels`"),
    ("label_not_one_token", {**TEXT, "labels": ["x", "xy"]}, "labels", "`labels[1]`"),
    ("label_not_one_token", {**TEXT, "labels": [["x"], [""]]}, "labels", "`labels[1][0]`"),
    ("invalid_apply_softmax_type", {"apply_softmax": 1}, "apply_softmax", "an integer"),
    ("invalid_item_first_type", {"item_first": "yes"}, "item_first", "text"),
    ("invalid_tokenize", {**TEXT, "tokenize": "half"}, "tokenize", "'half', expected whole or"),
    ("invalid_special_tokens", {**TEXT, "special_tokens": True}, "special_tokens", "a boolean"),
    ("label_not_one_token", {**TEXT, "labels": ["x" * 10**6]}, "labels", "1000000 characters"),
    (
        "sequence_too_long",
        {**TEXT, "items": ["a", "a" * 10**6]},
        "items",
        "`items[1]` have 1000002",
    ),
    ("sequence_too_long", {**TEXT, "query": "a" * 10**6}, "query", "`query` has 1000000 bytes"),
    ("invalid_temperature", {"temperature": 0}, "temperature", "is 0"),
    ("invalid_temperature", {"temperature": -1.5}, "temperature", "-1.5"),
    ("invalid_temperature", {"temperature": True}, "temperature", "a boolean"),
    ("invalid_temperature", {"temperature": "1"}, "temperature", "text"),
    ("invalid_temperature", {"temperature": float("nan")}, "temperature", "nan"),
    ("invalid_temperature", {"temperature": float("inf")}, "temperature", "inf"),
    ("invalid_temperature", {"temperature": 10**400}, "temperature", "inf"),
    ("invalid_chunk_size", {"chunk_size": -1}, "chunk_size", "is -1"),
    ("invalid_chunk_size", {"chunk_size": True}, "chunk_size", "a boolean"),
    ("invalid_chunk_size", {"chunk_size": 2.5}, "chunk_size", "a float"),
    ("invalid_chunk_size", {"chunk_size": "2"}, "chunk_size", "text"),
    (
        "sequence_too_long",
        {"query": [1] * 15},
        "items",
        "`items[2]` of 2 tokens make 17 tokens, at most",
    ),
    ("sequence_too_long", {"query": [1] * 20}, "query", "make 22"),
    ("token_id_negative", {"query": [1, -1]}, "query", "`query[1]` is -1"),
    ("token_id_negative", {"items": [[3], [-9]]}, "items", "`items[1][0]`"),
    ("token_id_negative", {"label_token_ids": [-1]}, "label_token_ids", "[0]"),
    ("token_id_exceeds_vocab", {"query": [VOCAB_SIZE]}, "query", "0 to 299"),
    ("token_id_exceeds_vocab", {"items": [[], [1, 10**25]]}, "items", "`items[1][1]`"),
    ("token_id_exceeds_vocab", {"items": [[10**5000]]}, "items", "bits"),
    ("token_id_exceeds_vocab", {"items": [[1e20]]}, "items", "`items[0][0]`"),
    ("token_id_negative", {"items": [[-1e20]]}, "items", "`items[0][0]`"),
    ("token_id_exceeds_vocab", {"label_token_ids": [[7], [8, 300], [7]]}, None, "[1][1]"),
    ("token_id_exceeds_vocab", {**TEXT, "items": ["a", "aŁ"]}, "items", "`items[1][2]`"),
]


@pytest.mark.parametrize(("code", "fields", "param", "text"), FAULTS)
def test_fault_has_its_code(
    code: str, fields: dict[str, Any], param: str | None, text: str
) -> None:
    base = {} if "labels" in fields and "query" in fields and "items" in fields else GOOD
    error = fault({**base, **fields})
    assert error.code == code
    assert param in (None, error.param)
    assert text in str(error)
    assert len(str(error)) < 300


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"query": [1, DELIMITER]}, "`query[1]`"),
        ({"items": [[3], [], [4, DELIMITER]]}, "`items[2][1]`"),
    ],
)
def test_delimiter_is_refused_in_query_and_items(fields: dict[str, Any], text: str) -> None:
    error = fault({**GOOD, **fields}, WITH_DELIMITER)
    assert error.code == "delimiter_in_input"
    assert text in str(error)
    check({**GOOD, **fields})  # without a delimiter it is a token like any other


def test_delimiter_may_be_a_label() -> None:
    check({**GOOD, "label_token_ids": [DELIMITER]}, WITH_DELIMITER)


def test_delimiter_counts_towards_the_length() -> None:
    fields = {**GOOD, "query": [1] * 14}
    check(fields)
    assert "the delimiter" in str(fault(fields, WITH_DELIMITER))


CUT: dict[str, Any] = {**TEXT, "items": ["c", "c" * 99, ""], "truncate": True}


@pytest.mark.parametrize(
    ("changes", "limits", "longest"),
    [
        ({}, LIMITS, b"^ab" + b"c" * 13),
        ({"tokenize": "parts"}, LIMITS, b"^ab" + b"c" * 13),
        ({}, WITH_DELIMITER, b"^ab" + b"c" * 12),
        ({"item_first": True}, LIMITS, b"^" + b"c" * 13 + b"ab"),
        ({"item_first": True, "tokenize": "parts"}, LIMITS, b"^" + b"c" * 13 + b"ab"),
        ({"apply_template": True}, LIMITS, b"^<ab>(" + b"c" * 9 + b")"),
        ({"apply_template": True, "tokenize": "parts"}, LIMITS, b"^<ab>(" + b"c" * 9 + b")"),
        ({"max_tokens_per_item": 2}, LIMITS, b"^abcc"),
        ({"max_tokens_per_item": 2, "apply_template": True}, LIMITS, b"^<ab>(cc)"),
        ({"max_tokens_per_item": 99}, LIMITS, b"^ab" + b"c" * 13),
    ],
)
def test_too_long_text_loses_the_end_of_its_item(
    changes: dict[str, Any], limits: RequestLimits, longest: bytes
) -> None:
    fields = {**CUT, **changes}
    request, cut = check_request(fields, limits, TOKENIZER, TEMPLATE)
    assert cut == (1,)
    first = fields.get("item_first", False)
    rows = [(item, request.query) if first else (request.query, item) for item in request.items]
    assert [token for part in rows[1] for token in part.tolist()] == list(longest)
    short = check({**fields, "items": ["c", "c"], "truncate": None}, limits)
    assert request.items[0].tolist() == short.items[0].tolist()


def test_control_tokens_count_as_what_they_are_read_as() -> None:
    fields = {**CUT, "items": ["#c#" * 9], "max_tokens_per_item": 6}
    assert check(fields).items[0].tolist()[1:] == [CONTROL] * 6
    as_text = check({**fields, "special_tokens": "text"})
    assert as_text.items[0].tolist()[1:] == list(b"#c##c#")
    whole = {**fields, "max_tokens_per_item": None, "apply_template": True}
    assert check(whole).items[0].tolist() == list(b"(#c##c##c#")[:10] + list(b")")


@pytest.mark.parametrize(
    ("limits", "most", "kept"),
    [(LIMITS, None, 14), (WITH_DELIMITER, None, 13), (LIMITS, 3, 3), (LIMITS, 15, 14)],
)
def test_too_many_ids_are_cut_to_what_there_is_room_for(
    limits: RequestLimits, most: int | None, kept: int
) -> None:
    fields = {**GOOD, "items": [[3], [4] * 99, []], "truncate": True, "max_tokens_per_item": most}
    request, cut = check_request(fields, limits, TOKENIZER)
    assert (request.items, cut) == (TokenLists.of([[3], [4] * kept, []]), (1,))
    lists = check_request({**fields, "items": TokenLists.of(fields["items"])}, limits, TOKENIZER)
    assert lists == (request, cut)


def test_items_are_cut_where_the_server_says_so_and_the_request_does_not() -> None:
    cutting, fields = replace(LIMITS, truncate=True), {**CUT, "truncate": None}
    assert fault(fields).code == "sequence_too_long"
    assert check(fields, cutting) == check(CUT)
    assert fault({**fields, "truncate": False}, cutting).code == "sequence_too_long"


@pytest.mark.parametrize(
    ("changes", "code", "param", "text"),
    [
        ({"query": "a" * 99}, "sequence_too_long", "query", "`query`"),
        ({"query": "a" * 15}, "sequence_too_long", "query", "no room for `items[0]`"),
        ({"query": [1] * 16, "items": [[2]]}, "sequence_too_long", "query", "`query` of 16"),
        ({"items": ["a\ud800"]}, "invalid_items_type", "items", "`items[0]` has a lone"),
        (
            {"items": ["c", "a\ud800"], "max_tokens_per_item": 2},
            "invalid_items_type",
            "items",
            "`items[1]` has a lone surrogate at character 1",
        ),
        ({"truncate": 1}, "invalid_truncate", "truncate", "an integer, expected true or false"),
        ({"max_tokens_per_item": 0}, "invalid_max_tokens_per_item", None, "is 0, expected an"),
        ({"max_tokens_per_item": "3"}, "invalid_max_tokens_per_item", None, "is text"),
    ],
)
def test_what_cannot_be_cut(
    changes: dict[str, Any], code: str, param: str | None, text: str
) -> None:
    error = fault({**CUT, **changes})
    assert (error.code, error.param) == (code, param or "max_tokens_per_item")
    assert text in str(error)


@pytest.mark.parametrize("fields", [TEXT, {**GOOD, "label_token_ids": None, "labels": ["x"]}])
def test_text_needs_a_tokenizer(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"tokenizer\.json") as caught:
        check_request(fields, LIMITS, None)
    assert caught.value.code == "no_tokenizer"


tokens = st.integers(0, VOCAB_SIZE - 1)
token_lists = st.lists(tokens, max_size=5)


@given(
    query=st.lists(tokens, min_size=1, max_size=8),
    items=st.lists(token_lists, min_size=1, max_size=4),
    labels=st.lists(tokens, min_size=1, max_size=5, unique=True),
    softmax=st.booleans(),
)
def test_good_fields_come_back_as_they_are(
    query: list[int], items: list[list[int]], labels: list[int], softmax: bool
) -> None:
    fields = {"query": query, "items": items, "label_token_ids": labels, "apply_softmax": softmax}
    request = check(fields)
    assert list(request.query) == query
    assert [list(item) for item in request.items] == items
    assert [list(row) for row in request.labels] == [labels] * len(items)
    assert request.apply_softmax is softmax


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | tokens,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


@given(
    name=st.sampled_from(sorted({*GOOD, "labels", "temperature", "item_first"})), value=json_values
)
def test_any_json_value_passes_or_is_a_request_error(name: str, value: object) -> None:
    fields = {**GOOD, name: value}
    try:
        request = check(fields, WITH_DELIMITER)
    except RequestError as error:
        at_fault = error.param
    else:
        ids = [request.query, *request.items, *request.labels]
        assert all(0 <= token < VOCAB_SIZE for row in ids for token in row)
        assert {type(token) for row in request.labels for token in row} == {int}
        assert len(request.labels) == len(request.items)
        return
    assert at_fault in {*GOOD, "labels", "temperature", "item_first"}
