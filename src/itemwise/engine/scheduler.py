"""Who goes next: a bounded queue in front of the engine, which has a single thread.

Requests that wait and requests that run are ordered by `urgency` before every step, and the step is
filled from them in that order. No array library.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from itemwise.errors import (
    DeadlineExceededError,
    EngineLostError,
    QueueFullError,
    ShuttingDownError,
)
from itemwise.machine import release_memory
from itemwise.types import OpenRequest, ScoreRequest, ScoreResult, StepOutcome, StepStats

MIN_RETRY_AFTER_S = 1.0
STRETCH = 10.0
LAST_STEP_S = 1.0  # given to the step that still runs when a drain's time is over
# One step in so many goes by age alone, whatever the priorities; and of the others, one token in so
# many is for short requests, by age.
FAIR_STEP = 4
OPEN_STEPS = 4  # steps that open requests should fill; more would only hold pages
IDLE_S = 10.0  # without work, after which memory that is not used goes back to the system
FIRST_TOKENS_PER_S = 10_000.0  # believed until the first step was measured
_RECENT = 0.05  # weight of the latest step in the running means
logger = logging.getLogger("itemwise.scheduler")

Ending = Literal["finished", "failed", "refused", "cancelled", "expired"]


class Core(Protocol):
    """What the scheduler needs of an engine. All but `cost` is called from one thread."""

    @property
    def step_tokens(self) -> int:
        """Token places of a step."""
        ...

    def cost(self, request: ScoreRequest) -> int:
        """Tokens to compute, at most. From any thread."""
        ...

    def open(self, request: ScoreRequest) -> OpenRequest | None:
        """Takes a request in, or None if there is no room for it now."""
        ...

    def close(self, work: OpenRequest) -> None:
        """Lets go of a request that is not wanted any more."""
        ...

    def step(self, works: Sequence[OpenRequest]) -> StepOutcome:
        """Runs a step filled from open requests, the most urgent first."""
        ...

    def forget_prefixes(self) -> None:
        """Empties the prefix cache, apart from what open requests use."""
        ...


@dataclass(frozen=True)
class QueueLimits:
    """What is refused at once.

    Attributes:
        max_requests: requests that may wait.
        max_tokens: tokens that may wait or be under way, beyond a first request; None for no bound.
        max_timeout_s: seconds after which any request is given up; None for never.
    """

    max_requests: int
    max_tokens: int | None = None
    max_timeout_s: float | None = None


@dataclass(frozen=True)
class SchedulerCounters:
    """Requests since the start; `queued` and `running` are those of the moment.

    Every request received is in exactly one of the others.

    Attributes:
        received: `submit` was called.
        finished: scored.
        failed: the engine raised.
        refused: the queue was full, or the scheduler was draining.
        cancelled: given up by the caller.
        expired: not done in time.
        queued: waiting for the engine.
        running: open in the engine.
    """

    received: int = 0
    finished: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    expired: int = 0
    queued: int = 0
    running: int = 0


@dataclass(frozen=True)
class Backlog:
    """What waits or is under way at the moment.

    Attributes:
        requests: requests that wait.
        tokens: tokens still to be computed, at most.
        oldest_s: seconds that the oldest waiting request has waited, 0 if none waits.
        tokens_per_s: recent throughput of the engine.
    """

    requests: int
    tokens: int
    oldest_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class Scored:
    """An answer, not yet made: `result` does the last arithmetic, on the caller's thread.

    Attributes:
        queue_s: seconds until the engine took the request in.
        total_s: seconds until its last result was there.
    """

    result: Callable[[], ScoreResult]
    queue_s: float
    total_s: float


@dataclass(eq=False)
class Job:
    """A request and the future of its answer; cancelling the future gives the request up."""

    request: ScoreRequest
    cost: int
    arrived: float
    deadline: float | None
    future: Future[Scored] = field(default_factory=Future)
    work: Any = None  # its `OpenRequest`, once the engine has taken it in
    opened: float = 0.0
    ended: bool = False

    @property
    def remaining_tokens(self) -> int:
        """Tokens still to be computed, at most."""
        return self.cost if self.work is None else int(self.work.remaining_tokens)

    @property
    def has_pages(self) -> bool:
        """Whether it is open, and does not wait for pages of its next item."""
        return self.work is not None and not self.work.waits_for_pages


def urgency(
    priority: int, arrived: float, remaining_tokens: int, tokens_per_s: float
) -> tuple[int, float]:
    """A key to sort by, the most urgent first; its second part is the age alone.

    A lower `priority` goes first. Among equals, shortest remaining work goes first, with
    ageing: each is due when it arrived plus `STRETCH` times the work it has left. So a request is
    overtaken only by those that arrive within `STRETCH` times its own work, however many come; and
    a short one waits for a long one only where that is all but done.
    """
    return priority, arrived + STRETCH * remaining_tokens / tokens_per_s


class Scheduler:
    """Fills the engine's steps from all requests, on a thread of its own.

    Args:
        core: the engine; used from the scheduler's thread only.
        limits: what is refused at once.
        on_step: called with each completed step, on the scheduler's thread. The first
            exception that it raises is logged, the rest are ignored.
        on_lost: called once if the engine is lost; no request is taken after that.
        strict_priority: a lower `priority` always goes first, however long others wait. Otherwise
            one step in `FAIR_STEP` goes by age, short requests get a part of the others, and the
            eldest gets its pages first.
        clock: seconds of a simulation; then there is no thread, and the caller runs steps with
            `run_step` and `settle`. None for real time.
    """

    def __init__(
        self,
        core: Core,
        limits: QueueLimits,
        on_step: Callable[[StepStats], None] | None = None,
        on_lost: Callable[[BaseException], None] | None = None,
        strict_priority: bool = False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._core = core
        self._clock = clock or time.perf_counter
        self._strict_priority = strict_priority
        self._num_turns = 0
        self._blocked: Job | None = None  # the eldest, which waits for pages: nobody takes them
        self._limits = limits
        self._on_step = on_step
        self._on_step_failed = False
        self._on_lost = on_lost
        self._waiting: list[Job] = []
        self._open: list[Job] = []
        self._changed = threading.Condition()
        self._draining = False
        self._forgetting: list[Future[None]] = []
        self._lost: BaseException | None = None
        self._mean_tokens = self._mean_s = 0.0
        self._received = 0
        self._ended: dict[Ending, int] = dict.fromkeys(
            ("finished", "failed", "refused", "cancelled", "expired"), 0
        )
        # A daemon, so that a process in a hurry need not wait for the engine.
        self._thread = threading.Thread(target=self._work, name="itemwise-engine", daemon=True)
        if clock is None:
            self._thread.start()

    @property
    def tokens_per_s(self) -> float:
        """Recent throughput of the engine."""
        return self._mean_tokens / self._mean_s if self._mean_s else FIRST_TOKENS_PER_S

    def submit(self, request: ScoreRequest, cost: int | None = None) -> Job:
        """Queues a request; cancelling its future drops it, whether it waits or runs.

        Args:
            request: a checked request.
            cost: what the core's `cost` gave for it, where the caller knows.

        Raises:
            QueueFullError: as many requests or tokens wait as may.
            ShuttingDownError: `drain` was called.
            EngineLostError: the engine is lost.
        """
        now = self._clock()
        if cost is None:
            cost = self._core.cost(request)
        bounds = (request.timeout_s, self._limits.max_timeout_s)
        timeout_s = min((bound for bound in bounds if bound is not None), default=None)
        job = Job(request, cost, now, None if timeout_s is None else now + timeout_s)
        with self._changed:
            self._received += 1
            try:
                self._check_room(cost)
            except Exception:
                self._ended["refused"] += 1
                raise
            self._waiting.append(job)
            self._changed.notify()
        job.future.add_done_callback(lambda _: self._count_if_cancelled(job))
        return job

    def _check_open(self) -> None:
        if self._lost is not None:
            raise EngineLostError("the engine is lost")
        if self._draining:
            raise ShuttingDownError("the server is shutting down and takes no new requests")

    def _check_room(self, cost: int) -> None:
        self._check_open()
        limits, backlog = self._limits, self._backlog_tokens()
        if len(self._waiting) >= limits.max_requests:
            reason = (
                f"the queue is full: {len(self._waiting)} requests wait (`max_queued_requests`)"
            )
        elif limits.max_tokens is not None and backlog and backlog + cost > limits.max_tokens:
            reason = (
                f"the queue is full: {backlog} tokens wait, the request adds {cost}, and the limit "
                f"is {limits.max_tokens} (`max_queued_tokens`)"
            )
        else:
            return
        seconds = max(MIN_RETRY_AFTER_S, backlog / self.tokens_per_s)
        raise QueueFullError(f"{reason}; try again later", retry_after_s=seconds)

    def expire(self, job: Job) -> None:
        """Gives a request up because its time is over; does nothing if it is done."""
        if self._claim(job, "expired"):
            seconds = 0.0 if job.deadline is None else job.deadline - job.arrived
            job.future.set_exception(
                DeadlineExceededError(
                    f"the request was not scored within {seconds:g} s (`timeout_s`); nothing of it "
                    "is returned, send fewer items or allow more time"
                )
            )

    def forget_prefixes(self) -> Future[None]:
        """Empties the prefix cache before the next step; done once that is so.

        What open requests use stays.

        Raises:
            ShuttingDownError: `drain` was called.
            EngineLostError: the engine is lost.
        """
        forgotten: Future[None] = Future()
        with self._changed:
            self._check_open()
            self._forgetting.append(forgotten)
            self._changed.notify()
        return forgotten

    def drain(self, timeout_s: float | None = None) -> bool:
        """Refuses what comes, and returns once all that was taken is done.

        Args:
            timeout_s: seconds after which the rest is refused, too; None for no bound. It returns
                `LAST_STEP_S` later at most.

        Returns:
            Whether the engine's thread has ended; if not, it is still in a step.
        """
        with self._changed:
            self._draining = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._end_all("refused", ShuttingDownError("the server shut down before this was done"))
            self._thread.join(LAST_STEP_S)
        return not self._thread.is_alive()

    def counters(self) -> SchedulerCounters:
        """What has happened so far."""
        with self._changed:
            alive = [job for job in self._open if not job.ended]
            return SchedulerCounters(
                received=self._received,
                queued=len(self._waiting),
                running=len(alive),
                **self._ended,
            )

    def backlog(self) -> Backlog:
        """What waits or is under way."""
        with self._changed:
            arrived = [job.arrived for job in self._waiting]
            oldest_s = self._clock() - min(arrived) if arrived else 0.0
            return Backlog(len(arrived), self._backlog_tokens(), oldest_s, self.tokens_per_s)

    def _backlog_tokens(self) -> int:
        return sum(job.remaining_tokens for job in (*self._waiting, *self._open) if not job.ended)

    def _work(self) -> None:
        under_way = False
        try:
            while self._wait_for_work(under_way):
                if self._forget_if_asked(under_way):
                    continue
                outcome = self.run_step()
                under_way = outcome.in_flight
                self.settle(outcome)
        except BaseException as error:
            logger.critical("The engine is lost: the device no longer runs steps.", exc_info=error)
            with self._changed:
                self._lost = error
            self._end_all("failed", EngineLostError("the engine is lost"))
            if self._on_lost is not None:
                self._on_lost(error)

    def run_step(self) -> StepOutcome:
        """Calls the engine once, with the requests whose turn it is; for `settle`."""
        self._drop_ended()
        return self._core.step([job.work for job in self._turns()])

    def _wait_for_work(self, under_way: bool) -> bool:
        """Whether there is something to do; False once there will be no more."""

        def has_work() -> bool:
            return bool(self._waiting or self._open or under_way or self._forgetting)

        with self._changed:
            ended = self._changed.wait_for(lambda: has_work() or self._draining, IDLE_S)
        if not ended:
            release_memory()
        with self._changed:
            self._changed.wait_for(lambda: has_work() or self._draining)
            return has_work()

    def _forget_if_asked(self, under_way: bool) -> bool:
        """Empties the prefix cache if somebody asked; True if there was nothing else to do."""
        with self._changed:
            asked, self._forgetting = self._forgetting, []
            alone = bool(asked) and not (self._waiting or self._open or under_way)
        if asked:
            self._core.forget_prefixes()
        for forgotten in asked:
            if forgotten.set_running_or_notify_cancel():
                forgotten.set_result(None)
        return alone

    def _drop_ended(self) -> None:
        """Lets go of requests that were cancelled, or whose time is over."""
        now = self._clock()
        with self._changed:
            jobs = [*self._waiting, *self._open]
        for job in jobs:
            if job.deadline is not None and job.deadline <= now:
                self.expire(job)
        with self._changed:
            gone = [job for job in self._open if job.ended]
            self._open = [job for job in self._open if not job.ended]
        for job in gone:
            self._core.close(job.work)

    def _turns(self) -> list[Job]:
        """Open requests in the order of their turns; opens those whose turn has come."""
        order, eldest = self._order()
        if self._blocked is not eldest or (eldest and eldest.has_pages):
            self._blocked = None
        ahead, turns, wanted = 0, [], OPEN_STEPS * self._core.step_tokens
        for job in order:
            if job.work is None:
                held = self._blocked not in (None, job)
                if held or ahead >= wanted or not self._try_open(job):
                    # Nothing overtakes one that waits for pages, or it might wait for ever.
                    if job is eldest and not held and ahead < wanted:
                        self._blocked = job
                    wanted = 0
                    continue
            elif not job.has_pages:
                wanted = 0
                self._blocked = job if job is eldest else self._blocked
            turns.append(job)
            ahead += job.remaining_tokens
        return turns

    def _order(self) -> tuple[list[Job], Job | None]:
        """All requests by urgency, or by age where it is time for that; and the eldest."""
        rate = self.tokens_per_s
        with self._changed:
            jobs = [*self._open, *self._waiting]
        keys = {
            id(job): urgency(job.request.priority, job.arrived, job.remaining_tokens, rate)
            for job in jobs
        }
        if self._strict_priority:
            return sorted(jobs, key=lambda job: keys[id(job)]), None
        by_age = sorted(jobs, key=lambda job: keys[id(job)][1])
        eldest = by_age[0] if by_age else None
        self._num_turns += 1
        if self._num_turns % FAIR_STEP == 0:
            return by_age, eldest
        return self._with_short_ones(sorted(jobs, key=lambda job: keys[id(job)]), by_age), eldest

    def _with_short_ones(self, order: list[Job], by_age: list[Job]) -> list[Job]:
        """The order, but where not all fit the step, short ones go first, in a part of it."""
        room = self._core.step_tokens
        if sum(job.remaining_tokens for job in order) <= room:
            return order
        first, room = list[Job](), room // FAIR_STEP
        for job in by_age:
            if job.remaining_tokens <= room:
                first.append(job)
                room -= job.remaining_tokens
        return first + [job for job in order if job not in first]

    def _try_open(self, job: Job) -> bool:
        try:
            job.work = self._core.open(job.request)
        except Exception as error:
            self._fail(job, error)
        if job.work is None:
            return False
        job.opened = self._clock()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._open.append(job)
                return True
        self._core.close(job.work)  # given up just now
        return False

    def settle(self, outcome: StepOutcome) -> None:
        """Takes in what came of `run_step`: answers, failures and the throughput."""
        for step in outcome.landed:
            if self._mean_s:
                self._mean_tokens += _RECENT * (step.num_tokens - self._mean_tokens)
                self._mean_s += _RECENT * (step.seconds - self._mean_s)
            else:
                self._mean_tokens, self._mean_s = step.num_tokens, max(step.seconds, 1e-9)
            self._report(step)
        if not outcome.finished and not outcome.failed:
            return
        jobs = {id(job.work): job for job in self._open}
        finished = [jobs.pop(id(work)) for work in outcome.finished if id(work) in jobs]
        failed = [(jobs.pop(id(w)), error) for w, error in outcome.failed if id(w) in jobs]
        with self._changed:
            self._open = list(jobs.values())
        now = self._clock()
        for job in finished:
            if self._claim(job, "finished"):
                scored = Scored(job.work.result, job.opened - job.arrived, now - job.arrived)
                job.future.set_result(scored)
        for job, error in failed:
            self._fail(job, error)

    def _report(self, step: StepStats) -> None:
        """Calls `on_step`, whose failure is no failure of the engine: it is logged, once."""
        if self._on_step is None:
            return
        try:
            self._on_step(step)
        except Exception:
            if not self._on_step_failed:
                self._on_step_failed = True
                logger.exception(
                    "`on_step` failed. Scoring goes on; further failures are not logged."
                )

    def _fail(self, job: Job, error: BaseException) -> None:
        if not self._claim(job, "failed"):
            return
        if isinstance(error, StopIteration) or not isinstance(error, Exception):
            # Neither may pass through a future: one cannot, the other would end the caller.
            cause, error = error, RuntimeError(f"the engine raised {type(error).__name__}")
            error.__cause__ = cause
        job.future.set_exception(error)

    def _end_all(self, ending: Ending, error: Exception) -> None:
        with self._changed:
            jobs = [*self._waiting, *self._open]
        for job in jobs:
            if self._claim(job, ending):
                job.future.set_exception(error)

    def _claim(self, job: Job, ending: Ending) -> bool:
        """Whether the caller is the one to end the job, which it then must do."""
        with self._changed:
            if job.ended or not job.future.set_running_or_notify_cancel():
                return False
            self._end(job, ending)
            return True

    def _count_if_cancelled(self, job: Job) -> None:
        if not job.future.cancelled():
            return
        with self._changed:
            if not job.ended:
                self._end(job, "cancelled")
            self._changed.notify()

    def _end(self, job: Job, ending: Ending) -> None:
        """Counts a request as done; its place in the queue is free at once. Needs the lock."""
        job.ended = True
        self._ended[ending] += 1
        if job in self._waiting:
            self._waiting.remove(job)
