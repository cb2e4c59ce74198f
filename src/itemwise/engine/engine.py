"""The engine: one model on one device, ready to score.

A request's prefix is looked up in the page cache; what is missing is computed page by page; then
its items are packed densely into lanes that read those pages (`open_request.py`, `batcher.py`).
Requests that are open at the same time share steps. Nothing here can change a score: not batch
composition, order, chunks or cache.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from itemwise.config import EngineConfig
from itemwise.engine.batcher import Batcher, Counters
from itemwise.engine.compile_cache import compile_counter
from itemwise.engine.label_reads import label_cost
from itemwise.engine.packed_batcher import PackedBatcher
from itemwise.engine.packed_sequence import DEFAULT_MAX_TOKENS
from itemwise.engine.pages import PageCache
from itemwise.engine.start import check_self, load
from itemwise.models.config import ModelConfig
from itemwise.ops.step.arrays import StepShape
from itemwise.progress import ProgressFn, silent
from itemwise.types import DTypes, OpenRequest, ScoreRequest, ScoreResult, StepOutcome


class Engine:
    """Scores requests with one model on one device. Not thread-safe: one thread runs steps.

    `score` scores some requests. A server does the same step by step: it opens requests as they
    come, runs steps, and takes those that are finished.

    Args:
        folder: a checkpoint folder.
        config: settings; see `EngineConfig`.
        on_progress: called with the tensors read, as (what, done, total).

    Raises:
        CheckpointError: the checkpoint cannot be read or is of an unsupported kind.
        ConfigError: the settings do not fit the machine.
        SelfCheckError: scores change with batch composition on this device, or are not finite.
    """

    def __init__(
        self, folder: Path, config: EngineConfig, on_progress: ProgressFn = silent
    ) -> None:
        counter = compile_counter()
        self.config = config
        self._parts = load(folder, config, on_progress)
        self._programs = self._parts.programs
        self._counters = Counters()
        self._exact = Batcher(self._programs, self._new_cache, self._counters)
        max_packed = config.max_multi_item_seq_len or min(self.max_seq_len, DEFAULT_MAX_TOKENS)
        self._packed = PackedBatcher(self._programs, max_packed, self._counters)
        compiled = time.perf_counter()
        self.self_check = check_self(self, config, self._parts)
        self._self_check_s = time.perf_counter() - compiled
        self._compiled_at_ready = counter.count

    def _new_cache(self) -> PageCache:
        reuse = not self.config.disable_radix_cache
        return PageCache(self._parts.plan.num_pages, self.shape.page_tokens, reuse=reuse)

    @property
    def model_config(self) -> ModelConfig:
        """The model."""
        return self._parts.model

    @property
    def device(self) -> jax.Device:
        """The device; the first, where several share the model."""
        return self._parts.device

    @property
    def max_seq_len(self) -> int:
        """Most tokens of query, delimiter and one item together, however they are divided."""
        return self._parts.max_seq_len

    @property
    def dtypes(self) -> DTypes:
        """The types of weights and activations."""
        return self._parts.dtypes

    @property
    def shape(self) -> StepShape:
        """Sizes of the largest step."""
        return self._programs.shape

    @property
    def shapes(self) -> tuple[StepShape, ...]:
        """Sizes of all steps, ascending."""
        return self._programs.shapes

    @property
    def num_pages(self) -> int:
        """Pages of the pool, the null page included."""
        return self._parts.plan.num_pages

    @property
    def step_tokens(self) -> int:
        """Token places of the largest step."""
        return self.shape.tokens

    def forget_prefixes(self) -> None:
        """Empties the prefix cache."""
        self._exact.cache.clear()

    def reset(self) -> None:
        """Lets go of all requests and empties the page pool."""
        self._exact.reset()
        self._packed.reset()

    def score(
        self, requests: Sequence[ScoreRequest], on_progress: ProgressFn = silent
    ) -> list[ScoreResult]:
        """Scores requests together, in shared steps. A result's bits do not depend on the others.

        Args:
            requests: checked requests.
            on_progress: called with the items scored so far, as (what, done, total).

        Raises:
            RequestError: a request needs more pages than there are (`sequence_too_long`); then
                none is scored.
        """
        return self._score(requests, on_progress)

    def score_exactly(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """As `score`, through the exact step, whatever the algorithm."""
        return self._score(requests, exactly=True)

    def _score(
        self,
        requests: Sequence[ScoreRequest],
        on_progress: ProgressFn = silent,
        *,
        exactly: bool = False,
    ) -> list[ScoreResult]:
        for request in requests:
            self._batcher_for(request, exactly).check(request, self.config)
        total = sum(len(request.items) for request in requests)
        waiting, works, opened, done = deque(requests), list[OpenRequest](), list[OpenRequest](), 0
        try:
            while waiting or opened:
                while waiting and (work := self._open(waiting[0], exactly)):
                    waiting.popleft()
                    works.append(work)
                    opened.append(work)
                outcome = self.step(opened)
                for _, error in outcome.failed:
                    raise error
                opened = [work for work in opened if work not in outcome.finished]
                done += sum(step.num_items for step in outcome.landed)
                if outcome.landed:
                    on_progress("items", done, total)
        except BaseException:
            # Pages may be unwritten, and a failed step may have given the pool's memory away.
            self.reset()
            raise
        return [work.result() for work in works]

    def _batcher_for(self, request: ScoreRequest, exactly: bool = False) -> Batcher | PackedBatcher:
        packed = self.config.multi_item_algorithm == "packed" and not request.item_first
        return self._packed if packed and not exactly else self._exact

    def cost(self, request: ScoreRequest) -> int:
        """Tokens to compute if no page of the request is known, long lists of labels counted in."""
        return total_cost(self._batcher_for(request), request, self.config)

    def open(self, request: ScoreRequest) -> OpenRequest | None:
        """Takes a request in for `step`; None if there are no pages for it now.

        Raises:
            RequestError: it needs more pages than there are (`sequence_too_long`).
        """
        return self._open(request)

    def _open(self, request: ScoreRequest, exactly: bool = False) -> OpenRequest | None:
        return self._batcher_for(request, exactly).open(request, self.config)

    def close(self, work: OpenRequest) -> None:
        """Lets go of a request that is not wanted any more; no further row of it runs."""
        self._exact.close(work)
        self._packed.close(work)

    def step(self, works: Sequence[OpenRequest]) -> StepOutcome:
        """Runs a step filled from open requests, the most urgent first; see `Batcher.step`.

        With the packed algorithm, a step is one sequence of the most urgent request.
        """
        if not works or not self._packed.holds(works[0]):
            return self._exact.step(works)
        if self._exact.under_way:  # what runs comes first
            return self._exact.step([])
        return self._packed.step(works)

    def info(self) -> dict[str, Any]:
        """What runs, as JSON values: model, settings, device, self-check and counters."""
        shape, counters, cache = self.shape, self._counters, self._exact.cache
        parts, platform, sizes = self._parts, self._parts.platform, asdict(shape)
        del sizes["min_scored_rows"]  # what it comes to is beside it
        return {
            "model_config": asdict(self.model_config),
            "engine_config": asdict(self.config),
            "max_seq_len": self.max_seq_len,
            "device": {"platform": platform.name, "kind": self.device.device_kind},
            "cpu_level": platform.level.name if platform.level else None,
            "attention": f"{parts.kernel} kernel" if parts.kernel else "xla",
            "jax_version": jax.__version__,
            "dtype": self.dtypes.weights.name,
            "activations": self.dtypes.activations.name,
            "step_shape": {**sizes, "max_scored_rows": shape.max_scored_rows},
            "small_steps": [
                {"tokens": small.tokens, "lane_tokens": small.lane_tokens}
                for small in self._programs.shapes[:-1]
            ],
            "self_check": asdict(self.self_check),
            "startup_s": {
                "weights": parts.weights_s,
                "compile": parts.compile_s,
                "self_check": self._self_check_s,
            },
            "compiled_programs": self._compiled_at_ready,
            "compiled_since_ready": compile_counter().count - self._compiled_at_ready,
            "steps": counters.num_steps,
            "failed_steps": counters.num_failures,
            "computed_tokens": counters.num_tokens,
            "shared_tokens": counters.num_shared_tokens,
            "scored_items": counters.num_items,
            "packed_programs": [
                {"tokens": tokens, "mask": mask, "compile_s": seconds}
                for (tokens, mask), seconds in self._programs.packed_compile_s.items()
            ],
            "weight_bytes": parts.plan.weight_bytes,
            "pages": {
                "total": cache.capacity,
                "cached": cache.num_cached,
                "available": cache.num_available,
                "page_tokens": cache.page_tokens,
                "bytes": parts.plan.page_bytes * cache.num_pages,
                "hits": cache.hits,
                "misses": cache.misses,
                "evictions": cache.evictions,
            },
        }


def total_cost(
    batcher: Batcher | PackedBatcher, request: ScoreRequest, config: EngineConfig
) -> int:
    """Tokens to compute if no page of a request is known, long lists of labels counted in."""
    return batcher.cost(request, config) + label_cost(request.labels)
