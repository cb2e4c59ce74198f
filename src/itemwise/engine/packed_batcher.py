"""Steps of packed sequences: each is one sequence of one request, and nothing is cached."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from itemwise.config import EngineConfig
from itemwise.engine.batcher import Counters, check_device
from itemwise.engine.label_reads import rows_of
from itemwise.engine.open_request import num_prompt_tokens, with_delimiter
from itemwise.engine.packed_sequence import chunks, pack, packed_shape
from itemwise.engine.programs import Programs
from itemwise.engine.results import Results
from itemwise.ops.packed.base import PackedShape
from itemwise.types import (
    Float32Array,
    Mask,
    OpenRequest,
    ScoreRequest,
    ScoreResult,
    StepOutcome,
    StepStats,
    Timings,
)


def mask_of(config: EngineConfig) -> Mask:
    """The mask that the settings ask for; `auto` is `segment`, which computes less everywhere."""
    setting = config.multi_item_mask_impl
    return "segment" if setting == "auto" else setting


class PackedRequest:
    """A request that is being scored as packed sequences.

    Args:
        request: what is scored.
        config: settings.
        max_tokens: most tokens of a sequence; one with a single item may exceed it.
        row_multiple: as in `packed_shape`.

    Attributes:
        prefix: the tokens that each sequence begins with.
        mask: how a sequence tells its items apart.
        todo: the items of each sequence that is still to be run, as ranges of item numbers.
        remaining_tokens: tokens still to be computed; each sequence has the whole prefix.
        cached_tokens: prefix tokens that were found and not computed: none ever are.
        waits_for_pages: never; it holds none.
        results: of the items so far.
        seconds: time that its sequences took.
    """

    cached_tokens = 0
    waits_for_pages = False

    def __init__(
        self, request: ScoreRequest, config: EngineConfig, max_tokens: int, row_multiple: int
    ) -> None:
        self.request = request
        self.mask = mask_of(config)
        self.prefix = with_delimiter(request.query, config)
        chunk_size = request.chunk_size
        if chunk_size is None:
            chunk_size = config.multi_item_scoring_chunk_size
        lengths = request.items.lengths.tolist()
        self.todo = list(chunks(len(self.prefix), lengths, max_tokens, row_multiple, chunk_size))
        self.remaining_tokens = len(self.prefix) * len(self.todo) + len(request.items.tokens)
        self.results = Results(request)
        self.seconds = 0.0
        self._prompt_tokens = num_prompt_tokens(request, config)

    @property
    def done(self) -> bool:
        """Whether every item has its result."""
        return self.results.num_missing == 0

    def result(self) -> ScoreResult:
        """The answer, once `done`. From any thread."""
        assert self.done
        timings = Timings(0.0, self.seconds)
        return ScoreResult(
            self.results.scores(),
            self._prompt_tokens,
            timings=timings,
            logits=self.results.logits(),
            logsumexps=self.results.logsumexps(),
        )


class PackedBatcher:
    """Runs packed sequences, one a step. Not thread-safe.

    Args:
        programs: what runs them.
        max_tokens: most tokens of a sequence; one with a single item may exceed it.
        counters: what has run so far.
    """

    def __init__(self, programs: Programs, max_tokens: int, counters: Counters) -> None:
        self._programs = programs
        self._max_tokens = max_tokens
        self._counters = counters
        self._open: dict[int, PackedRequest] = {}  # by identity

    def cost(self, request: ScoreRequest, config: EngineConfig) -> int:
        """Tokens that scoring a request computes. From any thread."""
        return self._new_work(request, config).remaining_tokens

    def check(self, request: ScoreRequest, config: EngineConfig) -> None:
        """Does nothing: there is room for any request, as it holds no pages."""

    def open(self, request: ScoreRequest, config: EngineConfig) -> PackedRequest:
        """Takes a request in."""
        work = self._new_work(request, config)
        self._open[id(work)] = work
        return work

    def _new_work(self, request: ScoreRequest, config: EngineConfig) -> PackedRequest:
        return PackedRequest(
            request, config, self._max_tokens, self._programs.shape.max_scored_rows
        )

    def holds(self, work: OpenRequest) -> bool:
        """Whether a request is open here."""
        return id(work) in self._open

    def close(self, work: OpenRequest) -> None:
        """Lets go of a request, if it is open here; no further sequence of it runs."""
        self._open.pop(id(work), None)

    def reset(self) -> None:
        """Lets go of all requests."""
        self._open.clear()

    def step(self, works: Iterable[OpenRequest]) -> StepOutcome:
        """Runs a sequence of the first request that is open here, and waits for its results.

        A sequence that fails fails its request. The page pool is not touched.

        Raises:
            EngineLostError: it failed, and the device does not run an exact step either.
        """
        outcome = StepOutcome()
        work = next((self._open[id(each)] for each in works if self.holds(each)), None)
        if work is None:
            return outcome
        try:
            step = self._run_next(work)
        except Exception as error:
            self._counters.count_failure(error)
            check_device(self._programs)
            self.close(work)
            outcome.failed.append((work, error))
            return outcome
        self._counters.count_step(step)
        outcome.landed.append(step)
        if work.done:
            self.close(work)
            outcome.finished.append(work)
        return outcome

    def _run_next(self, work: PackedRequest) -> StepStats:
        start, chosen = time.perf_counter(), work.todo.pop(0)
        items = work.request.items[chosen.start : chosen.stop]
        num_tokens = len(work.prefix) + len(items.tokens)
        step = self._programs.shape
        shape = packed_shape(num_tokens, len(chosen), step.max_scored_rows, step.granule_tokens)
        self._score(work, chosen, shape)
        seconds = time.perf_counter() - start
        work.seconds += seconds
        work.remaining_tokens -= num_tokens
        share = num_tokens / shape.tokens
        return StepStats(seconds, num_tokens, share, share, len(chosen))

    def _score(self, work: PackedRequest, chosen: range, shape: PackedShape) -> None:
        programs, request = self._programs, work.request
        rows = programs.shape.max_scored_rows
        batch = pack(work.prefix, request.items[chosen.start : chosen.stop], shape)
        hidden = programs.packed(batch, shape, work.mask)
        # As many parts as the shape's rows fill; those past the items hold nothing.
        for part, start in zip(hidden, range(chosen.start, chosen.stop, rows), strict=False):
            here = range(start, min(start + rows, chosen.stop))
            logsumexps: Float32Array | None = None
            if not request.apply_softmax:
                scales = [1 / request.temperature] * len(here)
                sums = programs.vocab_logsumexp(part, scales)
                logsumexps = np.concatenate(list(map(np.asarray, sums)))[: len(here)]
            labels = [request.labels[i] for i in here]
            units = np.concatenate(list(map(np.asarray, programs.label_logits(part, labels))))
            work.results.take(here, rows_of(units, labels), logsumexps)
