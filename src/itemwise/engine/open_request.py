"""One request on its way through the engine: it gives rows, and takes results."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from itemwise.config import EngineConfig
from itemwise.engine.pages import PageCache, Prefix
from itemwise.engine.results import Results
from itemwise.engine.step_packer import Context, RowPlan
from itemwise.types import Float32Array, Int32Array, ScoreRequest, ScoreResult, Timings


def num_temporary_pages(num_tokens: int, page_tokens: int) -> int:
    """Pages that an item longer than a page needs while it runs: all it fills but the last."""
    return max(0, -(-num_tokens // page_tokens) - 1)


def runs_serially(request: ScoreRequest, config: EngineConfig) -> bool:
    """Whether each item has its prefix computed anew, in steps of its own."""
    return request.item_first or config.multi_item_algorithm == "serial"


def with_delimiter(tokens: Int32Array, config: EngineConfig) -> Int32Array:
    """The tokens of a prefix, and the delimiter after them where the settings have one."""
    delimiter = config.multi_item_scoring_delimiter
    return tokens if delimiter is None else np.append(tokens, np.int32(delimiter))


def num_prompt_tokens(request: ScoreRequest, config: EngineConfig) -> int:
    """Tokens of a request, its shared prefix and delimiter counted once."""
    shared = len(request.query) + (config.multi_item_scoring_delimiter is not None)
    return len(request.items.tokens) + shared * (len(request.items) if request.item_first else 1)


def num_computed_tokens(
    request: ScoreRequest, config: EngineConfig, items: Sequence[int] | None = None
) -> int:
    """Tokens that scoring a request (or some of its items) computes if no page of it is known."""
    rows = request.items.lengths
    if items is not None:
        rows = rows[np.asarray(items, np.intp)]
    shared = len(request.query) + (config.multi_item_scoring_delimiter is not None)
    # A row without tokens runs the last token of its prefix again.
    if not request.item_first:
        rows = np.maximum(rows, 1)
    elif not len(request.query):
        shared += 1
    return int(rows.sum()) + shared * (len(rows) if runs_serially(request, config) else 1)


def num_pages_needed(request: ScoreRequest, config: EngineConfig, page_tokens: int) -> int:
    """Most pages that a request's prefix and a long item need at once."""
    prefix, row = len(request.query), int(request.items.lengths.max())
    if request.item_first:
        prefix, row = row, prefix
    prefix += config.multi_item_scoring_delimiter is not None
    return -(-prefix // page_tokens) + num_temporary_pages(row, page_tokens)


class ExactRequest:
    """A request that is being scored.

    A request that shares its prefix computes it once; then every item is a row against it. One that
    runs serially (`alone`) does so for item after item, with pages that nobody else finds.

        work = ExactRequest(request, config)
        if work.start(cache):                      # reserves pages
            while (row := work.next_row()) is not None and step.fits(row):
                step.add(row)
                work.take_row(row)
            run(step)
            work.after_step()                      # gives back what later rows do not read

    Whoever finds a page that these rows write runs later or in the same step, since rows keep their
    order. A work that is closed half-way has made no other page known.

    Attributes:
        request: what is scored.
        alone: a step of its own for each item.
        remaining_tokens: tokens that no row was taken for yet.
        waits_for_pages: its next item found no room for its prefix.
        cached_tokens: prefix tokens that were found and not computed.
        prefilled_at: when the last chunk of its prefix so far was computed, by `perf_counter`.
    """

    def __init__(self, request: ScoreRequest, config: EngineConfig) -> None:
        self.request = request
        self.alone = runs_serially(request, config)
        self.remaining_tokens = num_computed_tokens(request, config)
        self.waits_for_pages = False
        self.cached_tokens = 0
        self._config = config
        self._shared = with_delimiter(request.query, config)  # the prefix, where items share one
        self._todo: Sequence[int] = range(len(request.items))
        self._num_given = 0  # items of `_todo` whose rows were taken
        self._cache: PageCache | None = None
        self._prefix: Prefix | None = None
        self._context = Context()  # the whole prefix
        self._prefix_is_read = False  # by the last row that needs it
        self._rows: deque[RowPlan] = deque()  # of the item that comes next
        self._spare: list[int] = []  # pages for long items
        self._num_spare = 0
        self._busy: list[int] = []  # those of the item that comes next
        self._spent: list[int] = []  # those that are free once the step is sent
        self._results = Results(request)
        self.started_at = self.prefilled_at = self.done_at = 0.0

    @property
    def done(self) -> bool:
        """Whether every item has its result."""
        return self._results.num_missing == 0

    def start(self, cache: PageCache) -> bool:
        """Reserves pages; False if there is no room for now, and nothing is held then."""
        self._cache = cache
        if not self.started_at:
            self.started_at = self.prefilled_at = time.perf_counter()
        return self._open_prefix()

    def _sequence(self, index: int) -> tuple[Int32Array, Int32Array]:
        """An item's prefix, and the row that sees it."""
        item = self.request.items[index]
        if self.request.item_first:
            return with_delimiter(item, self._config), self.request.query
        return self._shared, item

    def _open_prefix(self) -> bool:
        cache = self._cache
        assert cache is not None
        tokens, row = self._sequence(self._todo[self._num_given])
        longest = len(row)
        if not self.alone:
            longest = int(self.request.items.lengths[np.asarray(self._todo)].max())
        spare = num_temporary_pages(longest, cache.page_tokens)
        if not cache.can_reserve(tokens, share=not self.alone, beside=spare):
            return False
        self._prefix = cache.reserve(tokens, share=not self.alone)
        self._spare, self._num_spare = cache.allocate(spare), spare
        self._skip(min(self._prefix.num_cached * cache.page_tokens, len(tokens)))
        return True

    def _skip(self, num_tokens: int) -> None:
        self.cached_tokens += num_tokens
        self.remaining_tokens -= num_tokens

    def next_row(self) -> RowPlan | None:
        """The row that comes next, for `take_row`; None if there is none, or no page for it now."""
        if self._rows:
            return self._rows[0]
        if self._num_given == len(self._todo):
            return None
        if self._prefix is None:
            self.waits_for_pages = not self._open_prefix()
            if self.waits_for_pages:
                return None
        cache, prefix = self._cache, self._prefix
        assert cache is not None
        assert prefix is not None
        page_tokens = cache.page_tokens
        while cache.adopt_page(prefix):
            start = (prefix.num_ready - 1) * page_tokens
            self._skip(len(prefix.tokens[start : start + page_tokens]))
        if prefix.num_ready < len(prefix.pages):
            start = prefix.num_ready * page_tokens
            return RowPlan(
                prefix.tokens[start : start + page_tokens],
                start,
                prefix.context(start, page_tokens),
                write_page=prefix.pages[prefix.num_ready],
            )
        if not self._context.pages:
            self._context = prefix.context(len(prefix.tokens), page_tokens)
        self._rows = self._item_rows(prefix, self._todo[self._num_given], cache)
        return self._rows[0] if self._rows else None

    def _item_rows(self, prefix: Prefix, index: int, cache: PageCache) -> deque[RowPlan]:
        """The rows of an item; all but the last of a long one go to temporary pages."""
        _, row = self._sequence(index)
        page_tokens, start, context = cache.page_tokens, len(prefix.tokens), self._context
        if not len(row):  # an empty item is the last prefix token, run again
            row, start = prefix.tokens[-1:], start - 1
            context = prefix.context(start, page_tokens)
        num_temporary = num_temporary_pages(len(row), page_tokens)
        if not num_temporary:
            return deque((RowPlan(row, start, context, score_id=index),))
        extra = max(0, num_temporary - len(self._spare))
        if not cache.can_allocate(extra):
            return deque()  # those of the item before it come free once its step is sent
        self._spare += cache.allocate(extra)
        self._busy = [self._spare.pop() for _ in range(num_temporary)]
        rows: deque[RowPlan] = deque()
        for page in self._busy:
            rows.append(RowPlan(row[:page_tokens], start, context, write_page=page))
            context = Context((*context.pages, page), (*context.lens, page_tokens))
            row, start = row[page_tokens:], start + page_tokens
        rows.append(RowPlan(row, start, context, score_id=index))
        return rows

    def take_row(self, row: RowPlan) -> None:
        """Counts the row that `next_row` gave as placed in the step that comes next."""
        self.remaining_tokens -= len(row.tokens)
        if not self._rows:
            assert self._cache is not None
            assert self._prefix is not None
            self._cache.commit_page(self._prefix)
            return
        self._rows.popleft()
        if not self._rows:
            self._num_given += 1
            self._prefix_is_read = self.alone  # the next item has another
            self._spent += self._busy
            self._busy = []

    def after_step(self) -> None:
        """Gives back the pages that no later row reads, once the step is sent to the device.

        Steps run in order, so others may get these pages while the step still runs.
        """
        assert self._cache is not None
        self._spare += self._spent
        self._spent = []
        if self._prefix_is_read or self._num_given == len(self._todo):
            self._release()
        elif len(self._spare) > self._num_spare:
            self._cache.free(self._spare[self._num_spare :])
            del self._spare[self._num_spare :]

    def _release(self) -> None:
        if self._cache is None or self._prefix is None:
            return
        self._cache.release(self._prefix)
        self._cache.free(self._spare + self._busy + self._spent)
        self._spare, self._busy, self._spent = [], [], []
        self._prefix, self._context, self._prefix_is_read = None, Context(), False
        self._rows.clear()

    def close(self) -> None:
        """Gives back all pages; it gives no more rows."""
        self._release()
        self._todo = ()
        self._num_given = 0

    def restart(self, cache: PageCache) -> None:
        """Begins anew, in an empty pool, with the items that have no result yet."""
        self._prefix, self._context, self._prefix_is_read = None, Context(), False
        self._rows.clear()
        self._spare, self._busy, self._spent = [], [], []
        self._todo, self._num_given = self._results.missing(), 0
        self.cached_tokens = 0  # what was found is lost, and computed after all
        self.remaining_tokens = num_computed_tokens(self.request, self._config, self._todo)
        self._cache = cache

    def take_results(
        self,
        items: Sequence[int],
        logits: Float32Array | Sequence[Float32Array],
        logsumexps: Float32Array | None,
    ) -> None:
        """Takes in the results of some items.

        Args:
            items: places in the request.
            logits: float32 [items, at least as many columns as labels], or an array of each item.
            logsumexps: float32 [items], where probabilities over the vocabulary are asked for.
        """
        self._results.take(items, logits, logsumexps)
        if self.done:
            self.done_at = time.perf_counter()

    def result(self) -> ScoreResult:
        """The answer, once `done`. From any thread."""
        assert self.done
        timings = Timings(
            prefill=self.prefilled_at - self.started_at,
            extend=max(0.0, self.done_at - self.prefilled_at),
        )
        return ScoreResult(
            self._results.scores(),
            num_prompt_tokens(self.request, self._config),
            self.cached_tokens,
            timings,
            self._results.logits(),
            self._results.logsumexps(),
        )
