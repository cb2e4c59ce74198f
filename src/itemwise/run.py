"""One run: requests become rows, rows fill steps, steps give scores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from itemwise.config import EngineConfig
from itemwise.packing import StepPacker
from itemwise.pages import PageCache, Prefix
from itemwise.programs import Programs
from itemwise.types import (
    Context,
    Float32Array,
    RowPlan,
    ScoreRequest,
    ScoreResult,
)

Progress = Callable[[str, int, int], None]  # what, done, total
Tokens = tuple[int, ...]


def sequences(request: ScoreRequest, delimiter: int | None) -> Iterator[tuple[Tokens, Tokens]]:
    """Per item the prefix, delimiter included, and the row that sees it."""
    between = () if delimiter is None else (delimiter,)
    for item in request.items:
        if request.item_first:
            yield item + between, request.query
        else:
            yield request.query + between, item


def num_temporary_pages(row: Tokens, page_tokens: int) -> int:
    """Pages that a row longer than a lane needs while it runs: all its lanes but the last."""
    return max(0, -(-len(row) // page_tokens) - 1)


@dataclass(frozen=True)
class _Target:
    """Where the score of a row goes, and how it is read."""

    request: int
    item: int
    labels: Tokens
    inverse_temperature: float
    over_vocab: bool


@dataclass(frozen=True)
class _Flight:
    """A step that the device runs: what its rows are for, and the arrays that will hold them."""

    targets: list[_Target]
    logits: list[jax.Array]
    logsumexp: jax.Array | None


class Run:
    """Scores some requests together. Made for one call of `score`.

    Attributes:
        num_steps: steps run.
        num_tokens: tokens computed, padding left out.
    """

    def __init__(
        self,
        programs: Programs,
        cache: PageCache,
        config: EngineConfig,
        requests: Sequence[ScoreRequest],
        on_progress: Progress | None = None,
    ) -> None:
        self._programs = programs
        self._cache = cache
        self._config = config
        self._requests = requests
        self._on_progress = on_progress
        self._packer = StepPacker(programs.shape)
        self._targets: list[_Target] = []  # a row's score_id is its place here
        self._after_step: list[Callable[[], None]] = []  # pages to give back once rows have run
        self._flights: deque[_Flight] = deque()
        self._logits = [[np.empty(0, np.float32)] * len(r.items) for r in requests]
        self._logsumexps = [np.zeros(len(r.items), np.float32) for r in requests]
        self._cached_tokens = [0] * len(requests)
        self._num_scored = 0
        self.num_steps = self.num_tokens = 0

    def score(self) -> list[ScoreResult]:
        """Runs everything; results in the order of the requests."""
        for index, request in enumerate(self._requests):
            if request.item_first or self._config.multi_item_algorithm == "serial":
                self._add_serial(index)
            else:
                self._add_shared(index)
        self._flush()
        while self._flights:
            self._land()
        return [self._result(index) for index in range(len(self._requests))]

    def _add_shared(self, index: int) -> None:
        """The prefix once, then every item against it."""
        request = self._requests[index]
        chunk = request.chunk_size
        if chunk is None:
            chunk = self._config.multi_item_scoring_chunk_size
        pairs = list(sequences(request, self._config.multi_item_scoring_delimiter))
        prefix = self._open_prefix(pairs[0][0], share=True)
        self._cached_tokens[index] = min(
            prefix.num_cached * self._cache.page_tokens, len(prefix.tokens)
        )
        for number, (_, row) in enumerate(pairs):
            if chunk and number % chunk == 0:
                self._packer.close_lane()
            self._add_row(prefix, row, self._target(index, number))
        self._after_step.append(lambda: self._cache.release(prefix))

    def _add_serial(self, index: int) -> None:
        """Item after item, each with its prefix computed anew, in steps of its own."""
        pairs = sequences(self._requests[index], self._config.multi_item_scoring_delimiter)
        for number, (tokens, row) in enumerate(pairs):
            self._flush()
            prefix = self._open_prefix(tokens, share=False)
            self._add_row(prefix, row, self._target(index, number))
            self._flush()
            self._cache.release(prefix)

    def _target(self, index: int, number: int) -> _Target:
        request = self._requests[index]
        return _Target(
            index,
            number,
            request.labels[number],
            1 / request.temperature,
            not request.apply_softmax,
        )

    def _open_prefix(self, tokens: Tokens, *, share: bool) -> Prefix:
        """Reserves a prefix's pages and emits the rows that fill those not cached.

        Rows keep their order, so the pages may be known to others from here on: whoever reads them
        runs later or in the same step.
        """
        if not self._cache.can_reserve(tokens, share=share):
            self._flush()  # what earlier requests of the run hold comes free
        prefix = self._cache.reserve(tokens, share=share)
        page_tokens = self._cache.page_tokens
        for i in range(prefix.num_cached, len(prefix.pages)):
            start = i * page_tokens
            context = prefix.context(start, page_tokens)
            chunk = tokens[start : start + page_tokens]
            self._emit(RowPlan(chunk, start, context, write_page=prefix.pages[i]))
        self._cache.commit(prefix)
        return prefix

    def _add_row(self, prefix: Prefix, row: Tokens, target: _Target) -> None:
        """Emits the rows of one item; all but the last lane of a long one go to temporary pages."""
        page_tokens, start = self._cache.page_tokens, len(prefix.tokens)
        if not row:  # an empty item is the last prefix token, run again
            row, start = prefix.tokens[-1:], start - 1
        context = prefix.context(start, page_tokens)
        num_temporary = num_temporary_pages(row, page_tokens)
        if not self._cache.can_allocate(num_temporary):
            self._flush()  # what earlier long items hold comes free
        pages = self._cache.allocate(num_temporary)
        for page in pages:
            self._emit(RowPlan(row[:page_tokens], start, context, write_page=page))
            context = Context((*context.pages, page), (*context.lens, page_tokens))
            row, start = row[page_tokens:], start + page_tokens
        self._targets.append(target)
        self._emit(RowPlan(row, start, context, score_id=len(self._targets) - 1))
        if pages:
            self._after_step.append(lambda: self._cache.free(pages))

    def _emit(self, row: RowPlan) -> None:
        if not self._packer.fits(row):
            self._flush()
        self._packer.add(row)

    def _flush(self) -> None:
        """Sends the step off as it stands, and gives back the pages that nobody reads after it.

        Steps run in order, so a page may be given to later rows while the step still runs.
        """
        if self._packer:
            batch = self._packer.take()
            hidden = self._programs.step(batch)
            targets = [self._targets[i] for i in batch.score_ids]
            if targets:
                self._flights.append(self._read(hidden, targets))
            self.num_steps += 1
            self.num_tokens += batch.num_tokens
        for give_back in self._after_step:
            give_back()
        self._after_step.clear()
        if len(self._flights) > 1:  # copy results back while the next step runs
            self._land()

    def _read(self, hidden: jax.Array, targets: list[_Target]) -> _Flight:
        programs = self._programs
        logsumexp = None
        if any(target.over_vocab for target in targets):
            scales = [target.inverse_temperature for target in targets]
            logsumexp = programs.vocab_logsumexp(hidden, scales)
        labels = [target.labels for target in targets]
        return _Flight(targets, programs.label_logits(hidden, labels), logsumexp)

    def _land(self) -> None:
        """Takes in the results of the oldest step under way."""
        flight = self._flights.popleft()
        logits = np.concatenate([np.asarray(part) for part in flight.logits], axis=1)
        logsumexp = None if flight.logsumexp is None else np.asarray(flight.logsumexp)
        for i, target in enumerate(flight.targets):
            self._logits[target.request][target.item] = logits[i, : len(target.labels)]
            if logsumexp is not None:
                self._logsumexps[target.request][target.item] = logsumexp[i]
        self._num_scored += len(flight.targets)
        if self._on_progress:
            total = sum(len(request.items) for request in self._requests)
            self._on_progress("items", self._num_scored, total)

    def _result(self, index: int) -> ScoreResult:
        request, logits = self._requests[index], self._logits[index]
        scores = probabilities(request, logits, self._logsumexps[index])
        delimiters = 0 if self._config.multi_item_scoring_delimiter is None else 1
        items = sum(map(len, request.items))
        if request.item_first:
            prompt = items + len(request.items) * (len(request.query) + delimiters)
        else:
            prompt = items + len(request.query) + delimiters
        return ScoreResult(scores, prompt, self._cached_tokens[index])


def probabilities(
    request: ScoreRequest, logits: list[Float32Array], logsumexps: Float32Array
) -> Float32Array | list[Float32Array]:
    """Scores from label logits: softmax over the labels, or the share of the vocabulary.

    In float64, item by item the same operations in the same order whatever the other items, then
    rounded to float32.
    """
    counts = {len(labels) for labels in request.labels}
    if len(counts) > 1:
        return [
            _rows_to_probabilities(request, row[None], logsumexps[i : i + 1])[0]
            for i, row in enumerate(logits)
        ]
    return _rows_to_probabilities(request, np.stack(logits), logsumexps)


def _rows_to_probabilities(
    request: ScoreRequest, logits: Float32Array, logsumexps: Float32Array
) -> Float32Array:
    scaled = logits.astype(np.float64) * (1 / request.temperature)
    if not request.apply_softmax:
        return np.exp(scaled - logsumexps[:, None]).astype(np.float32)
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    total = np.zeros(len(weights))
    for column in range(weights.shape[1]):  # a fixed order, which sum() does not promise
        total += weights[:, column]
    scores: Float32Array = (weights / total[:, None]).astype(np.float32)
    return scores
