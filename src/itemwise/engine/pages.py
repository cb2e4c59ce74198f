"""The page pool and the prefix cache, host side. Of arrays it knows token ids alone.

A page is known by what it holds: its tokens, after the pages before it. So a cache entry's key is
the entry before it and its own tokens, a chain that two queries share as far as their tokens agree.
Pages that nobody uses stay until room is needed, least recently used out first. Whoever uses a page
uses all pages before it, so of unused pages the oldest never has a younger one after it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from itemwise.engine.step_packer import NULL_PAGE, Context
from itemwise.types import Int32Array

Key = tuple[int, bytes]  # (serial number of the entry before, tokens)
_ROOT = 0


@dataclass(eq=False)
class _Entry:
    """A page with known content. `serial` names that content, and is never used again."""

    serial: int
    key: Key
    page: int
    users: int = 0


@dataclass(eq=False)
class Prefix:
    """The pages of a prefix that somebody uses; made by `reserve`, ended by `release`.

    Attributes:
        tokens: the prefix.
        pages: a page per run of page_tokens, in order; the last may be part full.
        num_cached: of these pages, how many were found and need no computing.
        num_ready: of these pages, how many (from the first) hold their content, or will by the
            time anything that runs later reads them.
    """

    tokens: Int32Array
    pages: list[int]
    num_cached: int
    num_ready: int
    _share: bool
    _entries: list[_Entry] = field(default_factory=list)

    def context(self, num_tokens: int, page_tokens: int) -> Context:
        """What a row at position `num_tokens` sees of the prefix."""
        num_pages = -(-num_tokens // page_tokens)
        lens = [page_tokens] * num_pages
        if num_tokens % page_tokens:
            lens[-1] = num_tokens % page_tokens
        return Context(tuple(self.pages[:num_pages]), tuple(lens))


class PageCache:
    """Pages 1 to `num_pages` - 1 of the pool; page 0 is the null page and is never given out.

    Attributes:
        page_tokens: tokens of a page.
        num_pages: pages of the pool, the null page included.
        hits: pages found in the cache so far.
        misses: pages of prefixes that had to be computed so far.
        evictions: cached pages given up for room so far.
    """

    def __init__(self, num_pages: int, page_tokens: int, *, reuse: bool = True) -> None:
        if num_pages < 2:
            raise ValueError(f"`num_pages` is {num_pages}, expected 2 or more")
        self.page_tokens = page_tokens
        self.num_pages = num_pages
        self.hits = self.misses = self.evictions = 0
        self._reuse = reuse
        self._free = list(range(num_pages - 1, NULL_PAGE, -1))
        self._entries: dict[Key, _Entry] = {}
        self._unused: OrderedDict[int, _Entry] = OrderedDict()  # by serial, oldest first
        self._next_serial = _ROOT + 1

    @property
    def capacity(self) -> int:
        """Pages that can ever be given out at once."""
        return self.num_pages - 1

    @property
    def num_available(self) -> int:
        """Pages that can be given out now: free, or cached and unused."""
        return len(self._free) + len(self._unused)

    @property
    def num_cached(self) -> int:
        """Pages that are kept for later prefixes."""
        return len(self._entries)

    def pages_for(self, num_tokens: int) -> int:
        """Pages that so many tokens fill."""
        return -(-num_tokens // self.page_tokens)

    def can_reserve(self, tokens: Int32Array, *, share: bool = True, beside: int = 0) -> bool:
        """Whether `reserve`, and then `allocate(beside)`, would succeed now."""
        found = self._find(tokens, share)
        unused = sum(1 for entry in found if not entry.users)
        wanted = self.pages_for(len(tokens)) - len(found) + beside
        return wanted <= self.num_available - unused

    def reserve(self, tokens: Int32Array, *, share: bool = True) -> Prefix:
        """Pages for a prefix, cached ones where its beginning is known. Only if `can_reserve`.

        Without `share` all its pages are fresh, and nobody else will find them.
        """
        assert self.can_reserve(tokens, share=share)
        entries = self._find(tokens, share)
        for entry in entries:
            entry.users += 1
            self._unused.pop(entry.serial, None)
        fresh = self.allocate(self.pages_for(len(tokens)) - len(entries))
        self.hits += len(entries)
        pages = [entry.page for entry in entries] + fresh
        found = len(entries)
        return Prefix(tokens, pages, found, found, share and self._reuse, entries)

    def adopt_page(self, prefix: Prefix) -> bool:
        """Takes the prefix's next page from another prefix that committed it meanwhile, if any."""
        key = self._next_key(prefix)
        entry = None if key is None else self._entries.get(key)
        if entry is None:
            return False
        entry.users += 1
        self._unused.pop(entry.serial, None)
        self.free([prefix.pages[prefix.num_ready]])
        prefix.pages[prefix.num_ready] = entry.page
        prefix._entries.append(entry)
        prefix.num_ready += 1
        prefix.num_cached += 1
        self.hits += 1
        return True

    def commit_page(self, prefix: Prefix) -> None:
        """Makes the prefix's next page known to others, once the row that writes it has its place.

        Whoever finds it must run later, or in the same step. Where another prefix committed the
        same content first, this one's page stays its own.
        """
        key = self._next_key(prefix)
        if key is not None and key not in self._entries:
            entry = _Entry(self._next_serial, key, prefix.pages[prefix.num_ready], users=1)
            self._next_serial += 1
            self._entries[key] = entry
            prefix._entries.append(entry)
        prefix.num_ready += 1
        self.misses += 1

    def _next_key(self, prefix: Prefix) -> Key | None:
        """What the prefix's next page is known by; None if it is nobody else's business."""
        i = prefix.num_ready
        if i == len(prefix.pages) or not prefix._share or len(prefix._entries) < i:
            return None
        return self._key(prefix._entries[-1] if i else None, prefix.tokens, i)

    def release(self, prefix: Prefix) -> None:
        """Ends the use of a prefix: its known pages stay cached, the others are free."""
        self.free(prefix.pages[len(prefix._entries) :])
        for entry in reversed(prefix._entries):  # the last page is the first to go
            entry.users -= 1
            if not entry.users:
                self._unused[entry.serial] = entry
        prefix.pages, prefix._entries = [], []

    def can_allocate(self, count: int) -> bool:
        """Whether `allocate(count)` would succeed now."""
        return count <= self.num_available

    def allocate(self, count: int) -> list[int]:
        """Takes pages, giving up the least recently used cached ones where it must."""
        assert self.can_allocate(count)
        while len(self._free) < count:
            _, entry = self._unused.popitem(last=False)
            del self._entries[entry.key]
            self._free.append(entry.page)
            self.evictions += 1
        return [self._free.pop() for _ in range(count)]

    def free(self, pages: Sequence[int]) -> None:
        """Gives back pages that `allocate` gave."""
        self._free.extend(pages)

    def clear(self) -> None:
        """Forgets every cached page that nobody uses."""
        while self._unused:
            _, entry = self._unused.popitem()
            del self._entries[entry.key]
            self._free.append(entry.page)

    def _find(self, tokens: Int32Array, share: bool) -> list[_Entry]:
        """The longest chain of known pages that the tokens begin with."""
        entries: list[_Entry] = []
        for i in range(self.pages_for(len(tokens)) if share and self._reuse else 0):
            entry = self._entries.get(self._key(entries[-1] if entries else None, tokens, i))
            if entry is None:
                break
            entries.append(entry)
        return entries

    def _key(self, before: _Entry | None, tokens: Int32Array, index: int) -> Key:
        start = index * self.page_tokens
        serial = before.serial if before is not None else _ROOT
        return serial, tokens[start : start + self.page_tokens].tobytes()
