"""Whatever a body holds, every format answers it or refuses it by a `RequestError`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itemwise.dialects.base import Fault
from itemwise.dialects.table import by_path, dialect_of
from itemwise.errors import RequestError
from tests.dialects.backend import ask

TEXTS = st.text(max_size=6) | st.sampled_from(["w1", "w2 w3", "w4 " * 80, "<|im_end|>"])
SCALARS = st.none() | st.booleans() | st.integers(-2, 1100) | st.floats(0.1, 3) | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["text", "content", "x"]), inner, max_size=2)
    ),
    max_leaves=8,
)
NAMES = sorted(
    {
        *("query", "items", "labels", "label_token_ids", "model", "truncate", "top_n", "top_k"),
        *("text_1", "text_2", "queries", "documents", "texts", "data_1", "data_2", "instruct"),
        *("apply_softmax", "item_first", "temperature", "return_token_logprobs", "priority"),
        *("max_tokens_per_doc", "max_tokens_per_item", "truncate_prompt_tokens", "raw_scores"),
        *("return_documents", "return_text", "activation", "timeout_s", "instruction"),
        *("state", "questions", "input", "assets", "images", "x_rotations", "x_label_mass"),
    }
)
QUESTIONS = st.fixed_dictionaries(
    {"type": st.sampled_from(["noul", "choice", "score", "predicate", "yes_no", "box"])},
    optional={
        **dict.fromkeys(("id", "name", "instructions", "question", "criteria"), VALUES),
        "criteria": VALUES | st.dictionaries(TEXTS, VALUES, max_size=3),
        "options": st.lists(st.fixed_dictionaries({"name": TEXTS}), max_size=3),
        "choices": st.lists(st.fixed_dictionaries({"value": TEXTS | st.booleans()}), max_size=3),
        "levels": st.lists(TEXTS | st.fixed_dictionaries({"label": TEXTS}), max_size=3),
    },
)
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "query": TEXTS | st.lists(st.integers(0, 999), max_size=3),
    "items": st.lists(TEXTS, max_size=3) | st.lists(st.lists(st.integers(0, 998), max_size=3)),
    "documents": st.lists(TEXTS, max_size=3),
    "texts": st.lists(TEXTS, max_size=3),
    "text_1": TEXTS | st.lists(TEXTS, max_size=2),
    "text_2": st.lists(TEXTS, max_size=2),
    "label_token_ids": st.just([7, 8]),
    "state": VALUES,
    "input": VALUES,
    "questions": st.lists(QUESTIONS, max_size=3) | st.dictionaries(TEXTS, QUESTIONS, max_size=3),
}
BODIES = st.builds(
    lambda likely, odd: {**likely, **odd},
    st.fixed_dictionaries({}, optional=LIKELY),
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=2),
)


@pytest.mark.parametrize("path", sorted(by_path()))
@given(body=BODIES)
@settings(max_examples=60)
def test_any_body_is_answered_or_refused(path: str, body: dict[str, Any]) -> None:
    try:
        ask(path, body)
    except RequestError as error:
        fault = Fault(400, error.code, "invalid_request_error", str(error), error.param)
        assert dialect_of(path, body).error(fault)["message"]
