"""One request with the `packed` algorithm: one sequence after the other, nothing cached."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from itemwise.config import EngineConfig
from itemwise.packed import chunks, pack, packed_shape
from itemwise.programs import Programs
from itemwise.types import (
    Float32Array,
    Mask,
    PackedShape,
    ScoreRequest,
    ScoreResult,
    StepOutcome,
    StepStats,
    Timings,
)
from itemwise.work import Results, Work, num_prompt_tokens


def mask_of(config: EngineConfig) -> Mask:
    """The mask that the settings ask for; `auto` is `segment`, which computes less everywhere."""
    setting = config.multi_item_mask_impl
    return "segment" if setting == "auto" else setting


def packed_prefix(request: ScoreRequest, config: EngineConfig) -> tuple[int, ...]:
    """The tokens that every packed sequence of a request begins with."""
    delimiter = config.multi_item_scoring_delimiter
    return request.query if delimiter is None else (*request.query, delimiter)


def packed_sequences(
    request: ScoreRequest, config: EngineConfig, max_tokens: int, row_multiple: int
) -> list[range]:
    """The items of each packed sequence of a request; `max_tokens` and so on as in `chunks`."""
    chunk_size = request.chunk_size
    if chunk_size is None:
        chunk_size = config.multi_item_scoring_chunk_size
    prefix, lengths = packed_prefix(request, config), [len(item) for item in request.items]
    return list(chunks(len(prefix), lengths, max_tokens, row_multiple, chunk_size))


def num_packed_tokens(request: ScoreRequest, config: EngineConfig, num_sequences: int) -> int:
    """Tokens that so many packed sequences compute: each has the whole prefix."""
    prefix = len(packed_prefix(request, config))
    return prefix * num_sequences + sum(map(len, request.items))


class PackedWork:
    """A request that is being scored as packed sequences, each a step of its own.

    Args:
        request: what is scored.
        config: settings.
        programs: what runs it.
        max_tokens: most tokens of a sequence; one with a single item may exceed it.

    Attributes:
        remaining_tokens: tokens still to be computed.
        cached_tokens: prefix tokens that were found and not computed: none ever are.
    """

    cached_tokens = 0

    def __init__(
        self, request: ScoreRequest, config: EngineConfig, programs: Programs, max_tokens: int
    ) -> None:
        self.request = request
        self._config = config
        self._programs = programs
        self._prefix = packed_prefix(request, config)
        self._todo = packed_sequences(request, config, max_tokens, programs.shape.max_rows)
        self.remaining_tokens = num_packed_tokens(request, config, len(self._todo))
        self._results = Results(request)
        self._seconds = 0.0

    @property
    def done(self) -> bool:
        """Whether every item has its result."""
        return self._results.num_missing == 0

    def run_next(self) -> StepOutcome[AnyWork]:
        """Runs its next sequence, and waits for the results."""
        start = time.perf_counter()
        outcome = StepOutcome[AnyWork]()
        chosen = self._todo.pop(0)
        items = self.request.items[chosen.start : chosen.stop]
        num_tokens = len(self._prefix) + sum(map(len, items))
        step = self._programs.shape
        shape = packed_shape(num_tokens, len(items), step.max_rows, step.granule_tokens)
        try:
            self._run(chosen, items, shape)
        except Exception as error:
            outcome.failed.append((self, error))
            return outcome
        seconds = time.perf_counter() - start
        self._seconds += seconds
        self.remaining_tokens -= num_tokens
        share = num_tokens / shape.tokens
        outcome.landed.append(StepStats(seconds, num_tokens, share, share, len(items)))
        if self.done:
            outcome.finished.append(self)
        return outcome

    def _run(self, chosen: range, items: Sequence[tuple[int, ...]], shape: PackedShape) -> None:
        programs, request = self._programs, self.request
        rows = programs.shape.max_rows
        batch = pack(self._prefix, items, shape)
        hidden = programs.packed(batch, shape, mask_of(self._config))
        # As many parts as the shape's rows fill; those past the items hold nothing.
        for part, start in zip(hidden, range(chosen.start, chosen.stop, rows), strict=False):
            here = range(start, min(start + rows, chosen.stop))
            logsumexps: Float32Array | None = None
            if not request.apply_softmax:
                scales = [1 / request.temperature] * len(here)
                logsumexps = np.asarray(programs.vocab_logsumexp(part, scales))[: len(here)]
            columns = programs.label_logits(part, [request.labels[i] for i in here])
            logits = np.concatenate([np.asarray(one) for one in columns], axis=1)[: len(here)]
            self._results.take(here, logits, logsumexps)

    def result(self) -> ScoreResult:
        """The answer, once `done`. From any thread."""
        assert self.done
        tokens = num_prompt_tokens(self.request, self._config)
        return ScoreResult(self._results.scores(), tokens, 0, Timings(0.0, self._seconds))


AnyWork = Work | PackedWork
