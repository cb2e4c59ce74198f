"""Steps: rows of the requests that are open fill them, the device runs them, results come back.

A step is prepared while the one before runs, and its results are copied back while the next runs.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from itemwise.config import EngineConfig
from itemwise.engine.label_reads import num_units, rows_of
from itemwise.engine.lowering import LABEL_COLUMNS
from itemwise.engine.open_request import ExactRequest, num_computed_tokens, num_pages_needed
from itemwise.engine.pages import PageCache
from itemwise.engine.programs import Programs
from itemwise.engine.step_packer import StepPacker
from itemwise.errors import EngineLostError, RequestError
from itemwise.types import Float32Array, OpenRequest, ScoreRequest, StepOutcome, StepStats

MAX_LABEL_READS = 32  # calls that read labels of a step; further items wait for the next one
MAX_FLIGHTS = 2  # steps that the device has at a time: one that runs, one that follows
logger = logging.getLogger("itemwise.engine")


@dataclass(frozen=True)
class _Segment:
    """Rows of one request in one step.

    Attributes:
        items: the items scored, in the order of the step's scored rows.
        has_prefix: whether there is a chunk of its prefix among them.
    """

    work: ExactRequest
    items: list[int]
    has_prefix: bool


@dataclass(frozen=True)
class _Flight:
    """A step that the device runs, and the arrays that will hold its results."""

    segments: list[_Segment]
    hidden: jax.Array
    logits: list[jax.Array]
    logsumexps: list[jax.Array]
    sent_at: float
    num_tokens: int
    token_share: float
    lane_share: float


@dataclass
class Counters:
    """What has run since the start, through whichever batcher.

    Attributes:
        num_steps: steps completed.
        num_tokens: tokens computed, padding left out.
        num_items: items scored.
        num_shared_tokens: prefix tokens found in the cache, of requests that are done.
        num_failures: steps that failed.
    """

    num_steps: int = 0
    num_tokens: int = 0
    num_items: int = 0
    num_shared_tokens: int = 0
    num_failures: int = 0

    def count_step(self, step: StepStats) -> None:
        """Counts a step that was completed."""
        self.num_steps += 1
        self.num_tokens += step.num_tokens
        self.num_items += step.num_items

    def count_failure(self, error: Exception) -> None:
        """Counts a step that failed, and logs why."""
        logger.error(
            "A step failed (%s): requests with rows in it get an error.",
            type(error).__name__,
            exc_info=error,
        )
        self.num_failures += 1


class Batcher:
    """Runs exact steps filled from several requests. Not thread-safe.

    Which request gives the next rows is the caller's choice, and changes no bit of any score.

    Args:
        programs: what runs the steps.
        new_cache: makes an empty cache.
        counters: what has run so far.
        clock: seconds, real or of a simulation.

    Attributes:
        cache: the pages.
    """

    def __init__(
        self,
        programs: Programs,
        new_cache: Callable[[], PageCache],
        counters: Counters,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._programs = programs
        self._clock = clock
        self._new_cache = new_cache
        self._counters = counters
        self.cache = new_cache()
        self._packer = self._new_packer()
        self._open: dict[int, ExactRequest] = {}  # by identity, oldest first
        self._filling: list[_Segment] = []
        self._num_units = 0  # of labels that the step being filled reads
        self._flights: deque[_Flight] = deque()
        self._landed_at = 0.0

    def _new_packer(self) -> StepPacker:
        *smaller, largest = self._programs.shapes
        return StepPacker(largest, smaller)

    def cost(self, request: ScoreRequest, config: EngineConfig) -> int:
        """Tokens that scoring a request computes if no page of it is known. From any thread."""
        return num_computed_tokens(request, config)

    def check(self, request: ScoreRequest, config: EngineConfig) -> None:
        """Returns if a request can ever have its pages.

        Raises:
            RequestError: it needs more than there are (`sequence_too_long`).
        """
        page_tokens, capacity = self._programs.shape.page_tokens, self.cache.capacity
        needed = num_pages_needed(request, config, page_tokens)
        if needed > capacity:
            longest = len(request.query) + request.items.lengths.max()
            raise RequestError(
                "sequence_too_long",
                f"a sequence of {longest} tokens needs {needed} pages of {page_tokens} tokens, "
                f"expected at most {capacity}; raise --kv-cache-bytes",
                "query",
            )

    def open(self, request: ScoreRequest, config: EngineConfig) -> ExactRequest | None:
        """Takes a request in; None if there are no pages for it now. Raises what `check` does."""
        self.check(request, config)
        work = ExactRequest(request, config)
        if not work.start(self.cache):
            return None
        self._open[id(work)] = work
        return work

    def close(self, work: OpenRequest) -> None:
        """Lets go of a request, whether done or not; no further row of it runs.

        Does nothing with one that is not open here.
        """
        mine = self._open.pop(id(work), None)
        if mine is not None:
            mine.close()

    @property
    def under_way(self) -> bool:
        """Whether the device has steps whose results were not taken in."""
        return bool(self._flights)

    def step(self, works: Iterable[OpenRequest]) -> StepOutcome:
        """Sends the next step off, and takes in the results of an earlier one.

        Args:
            works: requests, the most urgent first. Each that is open here gives as many rows as
                fit.

        Raises:
            EngineLostError: a step failed, and the device does not run another one.
        """
        outcome = StepOutcome()
        mine = [self._open[id(work)] for work in works if id(work) in self._open]
        self._filling, self._num_units = [], 0
        try:
            flight = self._send(mine)
            if flight is not None:
                self._flights.append(flight)
        except Exception as error:
            self._recover([s.work for s in self._filling], error, outcome)
        if len(self._flights) >= MAX_FLIGHTS or (self._flights and not self._filling):
            flight = self._flights.popleft()
            try:
                self._land(flight, outcome)
            except Exception as error:
                self._recover([s.work for s in flight.segments], error, outcome)
        outcome.in_flight = self.under_way
        return outcome

    def reset(self) -> None:
        """Lets go of all requests and empties the pool."""
        self._flights.clear()
        self._open.clear()
        self._packer = self._new_packer()
        self._programs.reset_pages()
        self.cache = self._new_cache()

    def _send(self, works: Iterable[ExactRequest]) -> _Flight | None:
        self._fill(works)
        if not self._packer:
            return None
        batch = self._packer.take()
        sent_at = self._clock()
        hidden = self._programs.step(batch)
        logits, logsumexps = self._read(hidden, self._filling)
        for segment in self._filling:
            segment.work.after_step()
        tokens = self._programs.shape.tokens
        return _Flight(
            self._filling,
            hidden,
            logits,
            logsumexps,
            sent_at,
            batch.num_tokens,
            batch.num_tokens / tokens,
            int(batch.arrays.num_places) / tokens,
        )

    def _fill(self, works: Iterable[ExactRequest]) -> None:
        """Rows into the step, request after request; an `alone` one shares it with nobody."""
        left = deque(works)
        while left:
            work = left.popleft()
            if work.alone and self._filling:
                continue
            self._fill_from(work)
            if self._filling and (work.alone or self._packer.is_full):
                return
            self._fill_lane(left)

    def _fill_lane(self, works: Iterable[ExactRequest]) -> None:
        """Fills the rest of the open lane, which is of use to rows of the same context alone.

        So nobody loses a place to these works, though it is not their turn yet. Where lanes begin
        anywhere there is no such rest.
        """
        for work in works:
            if not self._packer.lane_room:
                return
            if not work.alone:
                self._fill_from(work, within_lane=True)

    def _fill_from(self, work: ExactRequest, *, within_lane: bool = False) -> None:
        packer, items, has_prefix, has_rows = self._packer, list[int](), False, False
        self._filling.append(_Segment(work, items, False))  # first, so that a fault finds it
        while (row := work.next_row()) is not None:
            if not (packer.fits_lane(row) if within_lane else packer.fits(row)):
                break
            if row.score_id is not None and not self._take_labels(work.request, row.score_id):
                break
            packer.add(row)
            work.take_row(row)
            has_rows = True
            if row.score_id is None:
                has_prefix = True
                continue
            items.append(row.score_id)
            if work.alone:
                break
        self._filling.pop()
        if has_rows:
            self._filling.append(_Segment(work, items, has_prefix))

    def _take_labels(self, request: ScoreRequest, item: int) -> bool:
        """Whether the step may read an item's labels as well; counts them if so."""
        units = num_units(len(request.labels[item]), LABEL_COLUMNS)
        most = MAX_LABEL_READS * self._programs.shape.max_scored_rows
        if self._num_units and self._num_units + units > most:
            return False
        self._num_units += units
        return True

    def _read(
        self, hidden: jax.Array, segments: Sequence[_Segment]
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Starts to read the label logits of a step, and its log-sum-exps where they are needed."""
        labels, scales, over_vocab = [], [], False
        for segment in segments:
            request = segment.work.request
            labels += [request.labels[item] for item in segment.items]
            scales += [1 / request.temperature] * len(segment.items)
            over_vocab |= bool(segment.items) and not request.apply_softmax
        if not labels:
            return [], []
        logsumexps = self._programs.vocab_logsumexp(hidden, scales) if over_vocab else []
        logits = self._programs.label_logits(hidden, labels)
        for array in [*logits, *logsumexps]:
            array.copy_to_host_async()
        return logits, logsumexps

    def _land(self, flight: _Flight, outcome: StepOutcome) -> None:
        """Takes in the results of a step. Raises what the step raised."""
        units = logsumexps = None
        if flight.logits:
            units = np.concatenate([np.asarray(part) for part in flight.logits])
        if flight.logsumexps:
            logsumexps = np.concatenate([np.asarray(part) for part in flight.logsumexps])
        flight.hidden.block_until_ready()
        now, start = self._clock(), 0
        for segment in flight.segments:
            end = start + len(segment.items)
            if segment.has_prefix:
                segment.work.prefilled_at = now
            if units is not None and segment.items:
                labels = [segment.work.request.labels[item] for item in segment.items]
                over_vocab = None if logsumexps is None else logsumexps[start:end]
                self._hand_out(segment, rows_of(units, labels), over_vocab, outcome)
                units = units[sum(num_units(len(ids), LABEL_COLUMNS) for ids in labels) :]
            start = end
        begun = max(flight.sent_at, self._landed_at)
        self._landed_at = now
        shares = flight.token_share, flight.lane_share
        step = StepStats(now - begun, flight.num_tokens, *shares, start)
        self._counters.count_step(step)
        outcome.landed.append(step)

    def _hand_out(
        self,
        segment: _Segment,
        logits: Float32Array | list[Float32Array],
        logsumexps: Float32Array | None,
        outcome: StepOutcome,
    ) -> None:
        """Gives a request its results; a fault in that fails this request alone."""
        work = segment.work
        try:
            work.take_results(segment.items, logits, logsumexps)
        except Exception as error:
            self._counters.count_failure(error)
            if id(work) in self._open:
                self.close(work)
                outcome.failed.append((work, error))
            return
        if work.done and id(work) in self._open:
            self._counters.num_shared_tokens += work.cached_tokens
            self.close(work)
            outcome.finished.append(work)

    def _recover(
        self, blamed: Sequence[ExactRequest], error: Exception, outcome: StepOutcome
    ) -> None:
        """Fails the requests of a step that failed; the others begin anew in an empty pool.

        They keep the results they have. A failed step may have given the pool's memory away.
        """
        self._counters.count_failure(error)
        failed = {id(work): (work, error) for work in blamed}
        while self._flights:  # those sent before may be whole
            flight = self._flights.popleft()
            try:
                self._land(flight, outcome)
            except Exception as another:
                # After a step that failed those that read its pages fail; it is not their fault.
                if not blamed:
                    failed |= {id(s.work): (s.work, another) for s in flight.segments}
        self._packer = self._new_packer()
        self.cache = self._new_cache()
        check_device(self._programs, new_pool=True)
        for work, reason in failed.values():
            if self._open.pop(id(work), None) is not None:
                outcome.failed.append((work, reason))
        for work in self._open.values():
            work.restart(self.cache)


def check_device(programs: Programs, *, new_pool: bool = False) -> None:
    """Returns if the device runs a step without rows, be it in an empty pool.

    Raises:
        EngineLostError: it does not.
    """
    try:
        if new_pool:
            programs.reset_pages()
        programs.step(StepPacker(programs.shape).take()).block_until_ready()
    except Exception as lost:
        raise EngineLostError(f"the device no longer runs steps: {type(lost).__name__}") from lost
