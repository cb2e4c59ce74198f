"""A replica without a device: the scheduler, batcher, packer and page cache, on simulated time.

All of them are those that serve. Only the compiled programs are replaced, by something that takes
the time that a `StepCost` says, and gives zeros as logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from itemwise.capacity.step_cost import StepCost, StepWork, work_in
from itemwise.config import EngineConfig
from itemwise.engine.batcher import Batcher, Counters
from itemwise.engine.engine import total_cost
from itemwise.engine.label_reads import num_units
from itemwise.engine.lowering import LABEL_COLUMNS
from itemwise.engine.pages import PageCache
from itemwise.engine.programs import Programs
from itemwise.engine.scheduler import Job, QueueLimits, Scheduler
from itemwise.engine.step_packer import StepBatch
from itemwise.ops.step.arrays import StepShape
from itemwise.types import Float32Array, OpenRequest, ScoreRequest, StepOutcome


@dataclass
class Clock:
    """Simulated time, in seconds."""

    now: float = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@dataclass(frozen=True)
class EngineShape:
    """What an engine is, as far as its steps are concerned.

    Attributes:
        shapes: sizes of its steps, ascending.
        num_pages: pages of the pool, the null page included.
        config: its settings.
    """

    shapes: tuple[StepShape, ...]
    num_pages: int
    config: EngineConfig = field(default_factory=EngineConfig)


@dataclass(frozen=True)
class _Pending:
    """An array that a simulated step computes: who waits for it waits until `end`."""

    clock: Clock
    end: float
    value: Float32Array

    def block_until_ready(self) -> _Pending:
        self.clock.now = max(self.clock.now, self.end)
        return self

    def copy_to_host_async(self) -> None:
        """Needs no time."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Float32Array:
        return self.block_until_ready().value


class SimulatedPrograms:
    """What the batcher needs of `Programs`: steps that take time and compute nothing.

    Attributes:
        sent: what was in each step so far, where `record` asks for it.
        busy_s: seconds that the device took for all steps.
    """

    def __init__(
        self, engine: EngineShape, cost: StepCost, clock: Clock, *, record: bool = False
    ) -> None:
        self.shapes = engine.shapes
        self.sent: list[StepWork] = []
        self._cost, self._clock, self._record = cost, clock, record
        self._device_free = self.busy_s = 0.0

    @property
    def shape(self) -> StepShape:
        """Sizes of the largest step."""
        return self.shapes[-1]

    def step(self, batch: StepBatch) -> _Pending:
        """Sends a step: the host takes its time now, the device once it is free."""
        work = work_in(batch)
        self._clock.now += self._cost.host_s(work)
        begin = max(self._clock.now, self._device_free)
        seconds = self._cost.device_s(work) + self._cost.idle_s(begin - self._device_free)
        self._device_free = begin + seconds
        self.busy_s += seconds
        if self._record:
            self.sent.append(work)
        return _Pending(self._clock, self._device_free, np.zeros((0, 0), np.float32))

    def label_logits(self, hidden: _Pending, labels: list[tuple[int, ...]]) -> list[_Pending]:
        """Zeros for all labels."""
        units = sum(num_units(len(ids), LABEL_COLUMNS) for ids in labels)
        logits = np.zeros((units, LABEL_COLUMNS), np.float32)
        return [_Pending(self._clock, hidden.end, logits)]

    def vocab_logsumexp(
        self, hidden: _Pending, inverse_temperatures: list[float]
    ) -> list[_Pending]:
        """Zeros."""
        sums = np.zeros(len(inverse_temperatures), np.float32)
        return [_Pending(self._clock, hidden.end, sums)]

    def reset_pages(self) -> None:
        """Does nothing: there are no pages."""


class SimulatedCore:
    """An engine for the scheduler, on simulated time.

    Attributes:
        counters: what has run so far.
        programs: the steps.
        batcher: fills them; the real one.
        clock: the time.
    """

    def __init__(
        self, engine: EngineShape, cost: StepCost, clock: Clock, *, record: bool = False
    ) -> None:
        self._engine = engine
        self.clock = clock
        self.counters = Counters()
        self.programs = SimulatedPrograms(engine, cost, clock, record=record)
        self.batcher = Batcher(cast(Programs, self.programs), self._new_cache, self.counters, clock)

    def _new_cache(self) -> PageCache:
        reuse = not self._engine.config.disable_radix_cache
        return PageCache(self._engine.num_pages, self.programs.shape.page_tokens, reuse=reuse)

    @property
    def step_tokens(self) -> int:
        """Token places of the largest step."""
        return self.programs.shape.tokens

    def cost(self, request: ScoreRequest) -> int:
        """Tokens to compute, as the engine counts them for admission."""
        return total_cost(self.batcher, request, self._engine.config)

    def open(self, request: ScoreRequest) -> OpenRequest | None:
        """Takes a request in; None if there are no pages for it now."""
        return self.batcher.open(request, self._engine.config)

    def close(self, work: OpenRequest) -> None:
        """Lets go of a request."""
        self.batcher.close(work)

    def step(self, works: Sequence[OpenRequest]) -> StepOutcome:
        """Sends a step and takes in an earlier one."""
        return self.batcher.step(works)

    def forget_prefixes(self) -> None:
        """Empties the prefix cache."""
        self.batcher.cache.clear()


class Replica:
    """One engine with its scheduler. Whoever drives it asks `begin` and, at that time, `end`.

    Attributes:
        name: its name.
        core: the engine.
        num_under_way: requests taken and not finished.
    """

    def __init__(self, name: str, engine: EngineShape, cost: StepCost) -> None:
        self.name = name
        self._clock = Clock()
        self.core = SimulatedCore(engine, cost, self._clock)
        limits = QueueLimits(max_requests=1 << 30)
        self._scheduler = Scheduler(self.core, limits, clock=self._clock)
        self._outcome: StepOutcome | None = None
        self._in_flight = False
        self.num_under_way = 0

    def submit(self, now: float, request: ScoreRequest) -> Job:
        """Queues a request; the finished one counts itself off."""
        self._clock.now = now
        job = self._scheduler.submit(request)
        self.num_under_way += 1
        job.future.add_done_callback(lambda _: self._count_off())
        return job

    def _count_off(self) -> None:
        self.num_under_way -= 1

    @property
    def can_begin(self) -> bool:
        """Whether it is between two steps and has something to do."""
        return self._outcome is None and (self.num_under_way > 0 or self._in_flight)

    def begin(self, now: float) -> float:
        """Runs the engine once, as the scheduler's thread does; when that returns."""
        self._clock.now = now
        self._outcome = self._scheduler.run_step()
        return self._clock.now

    def end(self, now: float) -> None:
        """Hands out what the step that `begin` began has brought."""
        assert self._outcome is not None
        self._clock.now = now
        outcome, self._outcome = self._outcome, None
        self._in_flight = outcome.in_flight
        self._scheduler.settle(outcome)
        stands_still = not (outcome.landed or outcome.in_flight) and self.num_under_way > 0
        assert not stands_still, "a request never ended"
