"""Token ids in arrays: lists of them behave as sequences, and nobody can change them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemwise.types import ScoreRequest, TokenLists, token_array

token_lists = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=4), max_size=6)


@given(lists=token_lists)
def test_token_lists_give_back_what_they_hold(lists: list[list[int]]) -> None:
    found = TokenLists.of(lists)
    assert [one.tolist() for one in found] == lists
    assert found.lengths.tolist() == list(map(len, lists))
    assert found.tokens.tolist() == sum(lists, [])
    assert TokenLists.of(found) is found


@given(lists=token_lists, data=st.data())
def test_a_slice_of_token_lists_is_that_of_a_list(
    lists: list[list[int]], data: st.DataObject
) -> None:
    chosen = data.draw(st.slices(len(lists)))
    assert TokenLists.of(lists)[chosen] == TokenLists.of(lists[chosen])


def test_equal_token_lists_have_equal_lists() -> None:
    base = TokenLists.of([[1, 2], [3]])
    assert base == TokenLists.of(((1, 2), np.array([3])))
    assert base != TokenLists.of([[1], [2, 3]])
    assert base != TokenLists.of([[1, 2], [4]])
    assert base != [[1, 2], [3]]


def test_indices_beyond_the_end_are_refused() -> None:
    assert TokenLists.of([[1], [2]])[-1].tolist() == [2]
    with pytest.raises(IndexError):
        TokenLists.of([[1], [2]])[2]


def test_ids_beyond_32_bits_are_refused() -> None:
    with pytest.raises(OverflowError):
        TokenLists.of([[2**31]])


def test_arrays_of_a_request_are_kept_and_read_only() -> None:
    query, items = np.array([1, 2], np.int32), TokenLists.of([[3], [4, 5]])
    request = ScoreRequest(query, items, ((7,), (8,)))
    assert np.shares_memory(request.query, query)
    assert request.items is items
    assert np.shares_memory(request.items[1:].tokens, items.tokens)
    for array in (request.query, items.tokens, items.offsets, items[1], items[1:].offsets):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 9
    query[0] = 1  # it stays the caller's


def test_requests_are_equal_by_content() -> None:
    request = ScoreRequest((1, 2), ((3,), (4, 5)), ((7,), (8,)), priority=1)
    assert request == ScoreRequest([1, 2], [[3], [4, 5]], ((7,), (8,)), priority=1)
    assert request != replace(request, query=token_array([1, 3]))
    assert request != replace(request, items=TokenLists.of([[3], [4, 6]]))
    assert request != replace(request, labels=((7,), (9,)))
    assert request != replace(request, priority=2)
