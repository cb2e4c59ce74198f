"""A bounded first-in, first-out queue in front of the engine, which has a single thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from itemwise.errors import QueueFullError, ShuttingDownError
from itemwise.types import ScoreRequest, ScoreResult

MIN_RETRY_AFTER_S = 1.0
_RECENT = 0.2  # weight of the latest request in the running mean of service times


@dataclass(frozen=True)
class SchedulerCounters:
    """Requests since the start; `queued` and `running` are those of the moment.

    Attributes:
        received: `submit` was called.
        finished: scored.
        failed: the engine raised.
        refused: the queue was full, or the scheduler was draining.
        cancelled: given up by the caller before the engine took them.
        queued: waiting for the engine.
        running: with the engine, 0 or 1.
    """

    received: int = 0
    finished: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    queued: int = 0
    running: int = 0


@dataclass(frozen=True, eq=False)
class _Job:
    request: ScoreRequest
    future: Future[ScoreResult]


class Scheduler:
    """Runs requests one after the other on a thread of its own.

    Args:
        run: scores requests; called from the scheduler's thread only.
        max_queued_requests: requests that may wait; the one that runs does not count.
    """

    def __init__(
        self,
        run: Callable[[Sequence[ScoreRequest]], list[ScoreResult]],
        max_queued_requests: int,
    ) -> None:
        self._run = run
        self._max_queued_requests = max_queued_requests
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._draining = False
        self._mean_run_s = 0.0
        self._received = self._finished = self._failed = 0
        self._refused = self._cancelled = self._running = 0
        # A daemon, so that a process in a hurry need not wait for the engine.
        self._thread = threading.Thread(target=self._work, name="itemwise-engine", daemon=True)
        self._thread.start()

    def submit(self, request: ScoreRequest) -> Future[ScoreResult]:
        """Queues a request; cancelling the future drops it, unless the engine has it already.

        Raises:
            QueueFullError: as many requests wait as may.
            ShuttingDownError: `drain` was called.
        """
        job = _Job(request, Future())
        with self._changed:
            self._received += 1
            if self._draining:
                self._refused += 1
                raise _shutting_down()
            if len(self._waiting) >= self._max_queued_requests:
                self._refused += 1
                raise QueueFullError(
                    f"{len(self._waiting)} requests wait, the most allowed "
                    "(`max_queued_requests`); try again later",
                    retry_after_s=self._time_to_empty_s(),
                )
            self._waiting.append(job)
            self._changed.notify()
        job.future.add_done_callback(lambda _: self._forget_if_cancelled(job))
        return job.future

    def drain(self) -> None:
        """Refuses what waits and what comes, and returns once the engine's thread has ended."""
        with self._changed:
            self._draining = True
            refused = list(self._waiting)
            self._waiting.clear()
            self._changed.notify()
        for job in refused:
            if job.future.set_running_or_notify_cancel():
                with self._changed:
                    self._refused += 1
                job.future.set_exception(_shutting_down())
        self._thread.join()

    def counters(self) -> SchedulerCounters:
        """What has happened so far."""
        with self._changed:
            return SchedulerCounters(
                received=self._received,
                finished=self._finished,
                failed=self._failed,
                refused=self._refused,
                cancelled=self._cancelled,
                queued=len(self._waiting),
                running=self._running,
            )

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._score(job)

    def _next(self) -> _Job | None:
        """The next request that is still wanted, or None once there will be no more."""
        with self._changed:
            while True:
                while not self._waiting and not self._draining:
                    self._changed.wait()
                if not self._waiting:
                    return None
                job = self._waiting.popleft()
                if job.future.set_running_or_notify_cancel():
                    self._running = 1
                    return job

    def _score(self, job: _Job) -> None:
        started = time.perf_counter()
        result: ScoreResult | None = None
        error: BaseException | None = None
        try:
            (result,) = self._run([job.request])
        except BaseException as raised:  # whatever it is, the caller gets it and the thread lives
            error = raised
            if isinstance(raised, StopIteration) or not isinstance(raised, Exception):
                # Neither may pass through a future: one cannot, the other would end the caller.
                error = RuntimeError(f"the engine raised {type(raised).__name__}")
                error.__cause__ = raised
        run_s = time.perf_counter() - started
        with self._changed:
            self._running = 0
            self._finished += error is None
            self._failed += error is not None
            first = self._mean_run_s == 0.0
            self._mean_run_s += (run_s - self._mean_run_s) * (1.0 if first else _RECENT)
        if result is not None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)

    def _forget_if_cancelled(self, job: _Job) -> None:
        if not job.future.cancelled():
            return
        with self._changed:
            self._cancelled += 1
            if job in self._waiting:
                self._waiting.remove(job)

    def _time_to_empty_s(self) -> float:
        """Seconds until what runs and what waits is done, at the recent rate."""
        backlog = len(self._waiting) + self._running
        return max(MIN_RETRY_AFTER_S, backlog * self._mean_run_s)


def _shutting_down() -> ShuttingDownError:
    return ShuttingDownError("the server is shutting down and takes no new requests")
