from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from itemwise.engine.pages import PageCache, Prefix
from itemwise.engine.step_packer import NULL_PAGE
from itemwise.types import Int32Array, token_array

PAGE = 4


def commit(cache: PageCache, prefix: Prefix) -> None:
    while prefix.num_ready < len(prefix.pages):
        cache.commit_page(prefix)


def held(cache: PageCache, tokens: Int32Array) -> Prefix:
    prefix = cache.reserve(tokens)
    commit(cache, prefix)
    return prefix


def test_same_query_is_found_again() -> None:
    cache = PageCache(9, PAGE)
    first = held(cache, token_array(range(10)))
    pages = list(first.pages)
    cache.release(first)
    again = cache.reserve(token_array(range(10)))
    assert again.pages == pages
    assert again.num_cached == 3
    assert (cache.hits, cache.misses) == (3, 3)


def test_shared_beginning_is_found_page_by_page() -> None:
    cache = PageCache(9, PAGE)
    first = held(cache, token_array(range(10)))
    second = cache.reserve(token_array((*range(8), 99, 98, 97)))
    assert second.num_cached == 2
    assert second.pages[:2] == first.pages[:2]
    assert second.pages[2] != first.pages[2]


def test_same_tokens_after_another_beginning_are_not_found() -> None:
    cache = PageCache(9, PAGE)
    held(cache, token_array((1, 2, 3, 4, 5, 6, 7, 8)))
    assert cache.reserve(token_array((9, 9, 9, 9, 5, 6, 7, 8))).num_cached == 0


def test_uncommitted_pages_are_not_found_and_come_free() -> None:
    cache = PageCache(4, PAGE)
    prefix = cache.reserve(token_array(range(8)))
    assert cache.reserve(token_array(range(4))).num_cached == 0
    cache.release(prefix)
    assert cache.num_available == 2
    assert cache.num_cached == 0


def test_unshared_prefix_neither_finds_nor_is_found() -> None:
    cache = PageCache(9, PAGE)
    held(cache, token_array(range(8)))
    alone = cache.reserve(token_array(range(8)), share=False)
    assert not cache.adopt_page(alone)
    commit(cache, alone)
    assert alone.num_cached == 0
    cache.release(alone)
    assert cache.num_cached == 2


def test_least_recently_used_goes_first_and_last_pages_before_first_ones() -> None:
    cache = PageCache(6, PAGE)
    old, new = token_array(range(8)), token_array(range(100, 108))
    for tokens in (old, new, old):
        cache.release(held(cache, tokens))
    cache.allocate(2)  # one is free, one must go: the end of `new`
    assert cache.evictions == 1
    assert cache.reserve(new).num_cached == 1


def test_pages_in_use_are_never_given_up() -> None:
    cache = PageCache(4, PAGE)
    prefix = held(cache, token_array(range(8)))
    assert not cache.can_allocate(2)
    assert not cache.can_reserve(token_array(range(50, 58)))
    assert cache.can_reserve(token_array(range(12)))
    cache.release(prefix)
    assert cache.can_allocate(3)


def test_reuse_off_forgets() -> None:
    cache = PageCache(4, PAGE, reuse=False)
    cache.release(held(cache, token_array(range(8))))
    assert cache.num_cached == 0
    assert cache.reserve(token_array(range(8))).num_cached == 0


def test_two_prefixes_that_commit_the_same_content() -> None:
    cache = PageCache(9, PAGE)
    first, second = cache.reserve(token_array(range(8))), cache.reserve(token_array(range(8)))
    commit(cache, first)
    commit(cache, second)
    cache.release(first)
    cache.release(second)
    assert cache.num_cached == 2
    assert cache.num_available == 8


def test_page_committed_meanwhile_is_adopted() -> None:
    cache = PageCache(9, PAGE)
    first, second = (
        cache.reserve(token_array(range(10))),
        cache.reserve(token_array((*range(8), 99))),
    )
    cache.commit_page(first)
    assert cache.adopt_page(second)
    assert not cache.adopt_page(second), "the second page is not written yet"
    cache.commit_page(second)  # whoever comes first computes it
    assert cache.adopt_page(first)
    assert not cache.adopt_page(first)
    assert first.pages[:2] == second.pages[:2]
    assert (first.num_cached, second.num_cached) == (1, 1)
    assert (first.num_ready, second.num_ready) == (2, 2)
    assert (cache.hits, cache.misses) == (2, 2)
    for prefix in (first, second):
        cache.release(prefix)
    assert cache.num_available == 8


def test_unwritten_pages_of_a_prefix_given_up_are_not_found() -> None:
    cache = PageCache(9, PAGE)
    first = cache.reserve(token_array(range(12)))
    cache.commit_page(first)
    cache.release(first)
    assert cache.reserve(token_array(range(12))).num_cached == 1


def test_room_beside_a_prefix() -> None:
    cache = PageCache(5, PAGE)
    assert cache.can_reserve(token_array(range(8)), beside=2)
    assert not cache.can_reserve(token_array(range(8)), beside=3)


def test_context_lengths() -> None:
    prefix = PageCache(9, PAGE).reserve(token_array(range(10)))
    assert prefix.context(10, PAGE).lens == (4, 4, 2)
    assert prefix.context(9, PAGE).lens == (4, 4, 1)
    assert prefix.context(8, PAGE).lens == (4, 4)
    assert prefix.context(0, PAGE).pages == ()


def test_pool_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="`num_pages` is 1"):
        PageCache(1, PAGE)


class PageCacheMachine(RuleBasedStateMachine):
    """Pages are given to one holder at a time, and what is found is what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PageCache(8, PAGE)
        self.prefixes: list[Prefix] = []
        self.temporary: list[list[int]] = []
        self.content: dict[int, tuple[int, ...]] = {}  # page -> every token up to its end

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14).map(token_array))
    def reserve(self, tokens: Int32Array) -> None:
        if not self.cache.can_reserve(tokens):
            return
        prefix = self.cache.reserve(tokens)
        for i in range(prefix.num_cached):
            assert self.content[prefix.pages[i]] == tuple(tokens[: (i + 1) * PAGE])
        self.prefixes.append(prefix)

    @precondition(lambda self: self.prefixes)
    @rule(data=st.data())
    def next_page(self, data: st.DataObject) -> None:
        prefix = data.draw(st.sampled_from(self.prefixes))
        i = prefix.num_ready
        if i == len(prefix.pages):
            return
        upto = tuple(prefix.tokens[: (i + 1) * PAGE])
        if self.cache.adopt_page(prefix):
            assert self.content[prefix.pages[i]] == upto
        else:
            self.content[prefix.pages[i]] = upto
            self.cache.commit_page(prefix)
        assert prefix.num_ready == i + 1

    @precondition(lambda self: self.prefixes)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.prefixes) - 1))
        self.cache.release(self.prefixes.pop(index))

    @rule(count=st.integers(1, 3))
    def allocate(self, count: int) -> None:
        if self.cache.can_allocate(count):
            pages = self.cache.allocate(count)
            self.temporary.append(pages)
            for page in pages:
                self.content[page] = ()

    @precondition(lambda self: self.temporary)
    @rule()
    def free(self) -> None:
        self.cache.free(self.temporary.pop())

    @invariant()
    def pages_have_one_holder(self) -> None:
        temporary = [page for pages in self.temporary for page in pages]
        in_prefixes = {page for prefix in self.prefixes for page in prefix.pages}
        assert len(set(temporary)) == len(temporary)
        assert not in_prefixes & set(temporary)
        assert NULL_PAGE not in in_prefixes | set(temporary)
        used = len(in_prefixes) + len(temporary)
        assert self.cache.num_available == self.cache.capacity - used


TestPageCache = PageCacheMachine.TestCase
TestPageCache.settings = settings(max_examples=100, stateful_step_count=30)
