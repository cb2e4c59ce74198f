"""The queue: order, bounds, cancelling, faults, draining, and what it counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itemwise.errors import QueueFullError, ShuttingDownError
from itemwise.scheduler import MIN_RETRY_AFTER_S, Scheduler
from itemwise.types import ScoreRequest, ScoreResult

WAIT_S = 10


def request(number: int) -> ScoreRequest:
    return ScoreRequest((number,), ((),), ((0,),))


def result(number: int) -> ScoreResult:
    return ScoreResult(np.full((1, 1), number, np.float32), number)


class Engine:
    """Notes what runs, and may be held until `go`."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.threads: set[int] = set()
        self.started = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def hold(self) -> None:
        self.go.clear()

    def run(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        self.started.set()
        assert self.go.wait(WAIT_S)
        (number,) = (r.query[0] for r in requests)
        self.seen.append(number)
        self.threads.add(threading.get_ident())
        if number < 0:
            raise ValueError(f"planted {number}")
        return [result(number)]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def scheduler(engine: Engine) -> Iterator[Scheduler]:
    made = Scheduler(engine.run, max_queued_requests=3)
    yield made
    engine.go.set()
    made.drain()


def submit_held(engine: Engine, scheduler: Scheduler) -> Future[ScoreResult]:
    """A request that runs until `engine.go` is set."""
    engine.hold()
    running = scheduler.submit(request(0))
    assert engine.started.wait(WAIT_S)
    return running


def test_requests_run_in_order_on_one_thread(engine: Engine, scheduler: Scheduler) -> None:
    running = submit_held(engine, scheduler)
    waiting = [scheduler.submit(request(n)) for n in (1, 2, 3)]
    engine.go.set()
    assert [f.result(WAIT_S).prompt_tokens for f in (running, *waiting)] == [0, 1, 2, 3]
    assert engine.seen == [0, 1, 2, 3]
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads


def test_full_queue_refuses(engine: Engine, scheduler: Scheduler) -> None:
    submit_held(engine, scheduler)
    for n in (1, 2, 3):
        scheduler.submit(request(n))
    with pytest.raises(QueueFullError, match="3 requests wait") as caught:
        scheduler.submit(request(4))
    assert caught.value.retry_after_s == MIN_RETRY_AFTER_S
    counters = scheduler.counters()
    assert (counters.received, counters.refused, counters.queued, counters.running) == (5, 1, 3, 1)


def test_retry_after_follows_recent_service_times(
    engine: Engine, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 10.0, 100.0])  # one request that takes ten seconds, one that has begun
    monkeypatch.setattr("itemwise.scheduler.time.perf_counter", lambda: next(now, 100.0))
    scheduler.submit(request(1)).result(WAIT_S)
    engine.started.clear()
    submit_held(engine, scheduler)
    for n in (1, 2, 3):
        scheduler.submit(request(n))
    with pytest.raises(QueueFullError) as caught:
        scheduler.submit(request(4))
    assert caught.value.retry_after_s == pytest.approx(40.0)


def test_cancelled_request_is_dropped_and_frees_its_place(
    engine: Engine, scheduler: Scheduler
) -> None:
    running = submit_held(engine, scheduler)
    waiting = [scheduler.submit(request(n)) for n in (1, 2, 3)]
    assert waiting[1].cancel()
    assert not running.cancel()
    late = scheduler.submit(request(4))
    engine.go.set()
    assert late.result(WAIT_S).prompt_tokens == 4
    assert engine.seen == [0, 1, 3, 4]
    assert scheduler.counters().cancelled == 1


@pytest.mark.parametrize(
    ("planted", "seen"),
    [
        (ValueError("x"), ValueError),
        (SystemExit(1), RuntimeError),
        (StopIteration(), RuntimeError),
    ],
)
def test_exception_reaches_its_request_alone(planted: BaseException, seen: type[Exception]) -> None:
    def run(requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        if requests[0].query[0] == 1:
            raise planted
        return [result(7)]

    scheduler = Scheduler(run, max_queued_requests=3)
    with pytest.raises(seen):
        scheduler.submit(request(1)).result(WAIT_S)
    assert scheduler.submit(request(2)).result(WAIT_S).prompt_tokens == 7
    counters = scheduler.counters()
    assert (counters.failed, counters.finished, counters.running) == (1, 1, 0)
    scheduler.drain()


def test_wrong_number_of_results_is_a_failure() -> None:
    scheduler = Scheduler(lambda _: [], max_queued_requests=1)
    with pytest.raises(ValueError, match="not enough values"):
        scheduler.submit(request(1)).result(WAIT_S)
    scheduler.drain()


def test_drain_finishes_what_runs_and_refuses_the_rest(
    engine: Engine, scheduler: Scheduler
) -> None:
    running = submit_held(engine, scheduler)
    waiting = [scheduler.submit(request(n)) for n in (1, 2)]
    with ThreadPoolExecutor(1) as pool:
        draining = pool.submit(scheduler.drain)
        for future in waiting:
            with pytest.raises(ShuttingDownError):
                future.result(WAIT_S)
        with pytest.raises(ShuttingDownError):
            scheduler.submit(request(3))
        assert not draining.done()
        engine.go.set()
        draining.result(WAIT_S)
    assert running.result(WAIT_S).prompt_tokens == 0
    assert engine.seen == [0]
    assert scheduler.counters().refused == 3
    scheduler.drain()  # once more does no harm


def test_cancelling_from_an_event_loop_gives_up_the_place(
    engine: Engine, scheduler: Scheduler
) -> None:
    submit_held(engine, scheduler)

    async def leave() -> None:
        waiting = asyncio.wrap_future(scheduler.submit(request(1)))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(leave())
    assert scheduler.counters().queued == 0


@given(
    numbers=st.lists(st.integers(-2, 5), max_size=12),
    cancelled=st.sets(st.integers(0, 11)),
    limit=st.integers(1, 4),
)
@settings(max_examples=50, deadline=None)
def test_every_future_ends_and_counters_add_up(
    numbers: list[int], cancelled: set[int], limit: int
) -> None:
    engine = Engine()
    scheduler = Scheduler(engine.run, limit)
    futures: list[Future[ScoreResult]] = []
    refused = 0
    for index, number in enumerate(numbers):
        try:
            future = scheduler.submit(request(number))
        except QueueFullError:
            refused += 1
            continue
        futures.append(future)
        if index in cancelled:
            future.cancel()
    outcomes = [_outcome(future.result) for future in futures]
    scheduler.drain()
    counters = scheduler.counters()
    assert counters.received == len(numbers)
    assert counters.refused == refused
    assert counters.finished == outcomes.count("finished")
    assert counters.failed == outcomes.count("failed")
    assert counters.cancelled == outcomes.count("cancelled")
    assert (counters.queued, counters.running) == (0, 0)


def _outcome(wait: Callable[[float], ScoreResult]) -> str:
    try:
        wait(WAIT_S)
    except CancelledError:
        return "cancelled"
    except ValueError:
        return "failed"
    return "finished"


def test_many_threads_get_their_own_answers() -> None:
    scheduler = Scheduler(Engine().run, max_queued_requests=1000)

    def client(start: int) -> list[int]:
        numbers = range(start, start + 50)
        futures = [scheduler.submit(request(n)) for n in numbers]
        return [f.result(WAIT_S).prompt_tokens - n for f, n in zip(futures, numbers, strict=True)]

    with ThreadPoolExecutor(8) as pool:
        differences = list(pool.map(client, range(0, 800, 100)))
    scheduler.drain()
    assert {d for row in differences for d in row} == {0}
    assert scheduler.counters().finished == 400
