"""Turns, bounds, cancelling, deadlines, faults, draining, and what is counted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itemwise.engine import scheduler as scheduling
from itemwise.engine.scheduler import (
    MIN_RETRY_AFTER_S,
    STRETCH,
    Job,
    QueueLimits,
    Scheduler,
    urgency,
)
from itemwise.errors import (
    DeadlineExceededError,
    EngineLostError,
    QueueFullError,
    ShuttingDownError,
)
from itemwise.types import ScoreRequest, ScoreResult, StepOutcome, StepStats
from tests.engine.fake_core import FakeCore, FakeWork

WAIT_S = 10


def request(
    number: int, tokens: int = 1, priority: int = 0, timeout_s: float | None = None
) -> ScoreRequest:
    return ScoreRequest((number,) * tokens, ((),), ((0,),), priority=priority, timeout_s=timeout_s)


def answer(asked: ScoreRequest) -> ScoreResult:
    number = asked.query[0]
    if number < 0:
        raise ValueError(f"planted {number}")
    return ScoreResult(np.full((1, 1), number, np.float32), number)


def outcome_of(job: Job) -> int:
    return job.future.result(WAIT_S).result().prompt_tokens


@pytest.fixture
def core() -> FakeCore:
    return FakeCore(answer)


@pytest.fixture
def scheduler(core: FakeCore) -> Iterator[Scheduler]:
    made = Scheduler(core, QueueLimits(max_requests=3, max_tokens=100))
    yield made
    core.gate.set()
    assert made.drain(WAIT_S)


def held(core: FakeCore, scheduler: Scheduler, tokens: int = 1) -> Job:
    """A request that is in a step until `core.gate` is set."""
    core.gate.clear()
    core.in_step.clear()
    job = scheduler.submit(request(0, tokens))
    assert core.in_step.wait(WAIT_S)
    return job


def test_memory_is_released_once_the_engine_is_idle(
    core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Semaphore(0)
    monkeypatch.setattr(scheduling, "IDLE_S", 0.02)
    monkeypatch.setattr(scheduling, "release_memory", released.release)
    scheduler = Scheduler(core, QueueLimits(max_requests=3, max_tokens=100))
    for number in (1, 2):
        assert released.acquire(timeout=WAIT_S)
        assert not released.acquire(timeout=0.1), "again, though nothing ran"
        assert outcome_of(scheduler.submit(request(number))) == number
    assert scheduler.drain(WAIT_S)


def test_waiting_requests_share_the_next_step(core: FakeCore, scheduler: Scheduler) -> None:
    running = held(core, scheduler)
    waiting = [scheduler.submit(request(n)) for n in (1, 2, 3)]
    core.gate.set()
    assert [outcome_of(job) for job in (running, *waiting)] == [0, 1, 2, 3]
    assert core.turns == [[0], [1, 2, 3]]
    assert len(core.threads) == 1
    assert threading.get_ident() not in core.threads


def test_lower_priority_number_goes_first(core: FakeCore, scheduler: Scheduler) -> None:
    held(core, scheduler)
    jobs = [scheduler.submit(request(n, 8, priority)) for n, priority in ((1, 5), (2, -1), (3, 0))]
    core.gate.set()
    for job in jobs:
        outcome_of(job)
    assert core.turns == [[0], [2], [3], [1]]


def test_short_request_overtakes_a_long_one(core: FakeCore, scheduler: Scheduler) -> None:
    long = held(core, scheduler, tokens=80)
    short = scheduler.submit(request(1, 4))
    core.gate.set()
    outcome_of(short)
    assert outcome_of(long) == 0
    assert core.turns[:3] == [[0], [1, 0], [0]]


def test_one_that_waits_for_room_is_not_overtaken(core: FakeCore, scheduler: Scheduler) -> None:
    core.max_open = 1
    held(core, scheduler, tokens=16)
    jobs = [scheduler.submit(request(n, 8)) for n in (1, 2)]
    core.gate.set()
    for job in jobs:
        outcome_of(job)
    assert core.turns == [[0], [0], [1], [2]]


class Stream:
    """Requests that never pause: each answer submits another one, until `victim` is done."""

    def __init__(self, core: FakeCore, most: int, **fields: int) -> None:
        self.core, self.most, self.fields = core, most, fields
        self.count = 0
        self.scheduler: Scheduler | None = None
        self.victim: Job | None = None

    def answer(self, asked: ScoreRequest) -> ScoreResult:
        assert self.scheduler is not None
        if asked.query[0] == 1 and self.count < self.most and not self.over:
            self.count += 1
            self.scheduler.submit(request(1, **self.fields))
        return answer(asked)

    @property
    def over(self) -> bool:
        return self.victim is not None and self.victim.future.done()

    def run(self, victim: ScoreRequest, strict_priority: bool = False) -> None:
        self.core._score = self.answer
        self.core.gate.clear()
        limits = QueueLimits(max_requests=99)
        self.scheduler = Scheduler(self.core, limits, strict_priority=strict_priority)
        for _ in range(3):
            self.scheduler.submit(request(1, **self.fields))
        self.victim = self.scheduler.submit(victim)
        self.core.gate.set()
        outcome_of(self.victim)
        assert self.scheduler.drain(WAIT_S)


def test_urgent_requests_do_not_starve_the_rest(core: FakeCore) -> None:
    stream = Stream(core, most=50_000, tokens=8, priority=-5)
    stream.run(request(2, tokens=80))
    assert stream.count < stream.most, "it ran before the stream ended"


def test_short_requests_do_not_wait_for_a_fair_step(core: FakeCore) -> None:
    core.gate.clear()
    scheduler = Scheduler(core, QueueLimits(max_requests=99))
    urgent = [scheduler.submit(request(1, tokens=16, priority=-5)) for _ in range(3)]
    short = scheduler.submit(request(2, tokens=2))
    core.gate.set()
    for job in (*urgent, short):
        outcome_of(job)
    assert scheduler.drain(WAIT_S)
    first = next(i for i, turn in enumerate(core.turns) if 2 in turn)
    assert first <= 1, "in the first step that was filled while it waited"


def test_strict_priority_starves_the_rest(core: FakeCore) -> None:
    stream = Stream(core, most=1000, tokens=8, priority=-5)
    stream.run(request(2, tokens=80), strict_priority=True)
    assert stream.count == stream.most
    first = next(i for i, turn in enumerate(core.turns) if 2 in turn)
    assert first >= stream.most


class FewPages(FakeCore):
    """Request 2 has its pages only while it is the only one that is open."""

    def open(self, request: ScoreRequest) -> FakeWork | None:
        work = super().open(request)
        if work is not None and request.query[0] == 2:
            work.waits_for_pages = True
        return work

    def step(self, works: Sequence[FakeWork]) -> StepOutcome:
        if len(self._open) == 1:
            self._open[0].waits_for_pages = False
        return super().step([work for work in works if not work.waits_for_pages])


@pytest.mark.parametrize("priority", [0, -5])
def test_request_that_waits_for_pages_gets_them_in_the_end(priority: int) -> None:
    core = FewPages(answer)
    stream = Stream(core, most=50_000, tokens=3, priority=priority)
    stream.run(request(2, tokens=16))
    assert stream.count < stream.most, "it had its pages before the stream ended"


def test_known_cost_is_not_computed_again(
    core: FakeCore, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = held(core, scheduler)
    asked = request(1, 8)
    cost = core.cost(asked)
    monkeypatch.setattr(core, "cost", None)
    waiting = scheduler.submit(asked, cost)
    assert waiting.remaining_tokens == cost
    monkeypatch.undo()
    core.gate.set()
    assert [outcome_of(each) for each in (job, waiting)] == [0, 1]


def test_times_are_told(scheduler: Scheduler) -> None:
    scored = scheduler.submit(request(1)).future.result(WAIT_S)
    assert 0 <= scored.queue_s <= scored.total_s < WAIT_S


@given(
    others=st.lists(
        st.tuples(st.floats(0, 10), st.integers(1, 50), st.integers(-1, 1)), max_size=20
    ),
    arrived=st.floats(0, 10),
    tokens=st.integers(1, 50),
    rate=st.floats(0.1, 1000),
)
def test_overtaken_only_within_a_multiple_of_its_own_work(
    others: list[tuple[float, int, int]], arrived: float, tokens: int, rate: float
) -> None:
    mine = urgency(0, arrived, tokens, rate)
    for when, size, priority in others:
        first = urgency(priority, when, size, rate) < mine
        if priority:
            assert first == (priority < 0)
        elif when > arrived + STRETCH * tokens / rate:
            assert not first, "it starves"
        elif when <= arrived and size < tokens:
            assert first, "the shorter one that came first goes first"


@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40)), min_size=1, max_size=12),
    long=st.integers(50, 200),
)
@settings(max_examples=50)
def test_no_request_starves_in_simulated_time(sizes: list[tuple[int, int]], long: int) -> None:
    """One token a second; short requests keep coming, and the long one still ends in time."""
    left = {0: long} | {i + 1: size for i, (_, size) in enumerate(sizes)}
    arrived = {0: 0} | {i + 1: when for i, (when, _) in enumerate(sizes)}
    now, ended = 0, dict[int, int]()
    while left:
        here = [i for i in left if arrived[i] <= now]
        if here:
            turn = min(here, key=lambda i: urgency(0, arrived[i], left[i], 1.0))
            left[turn] -= 1
            if not left[turn]:
                del left[turn]
                ended[turn] = now + 1
        now += 1
    for i, (when, size) in enumerate(sizes):
        # A short one waits for the long one only if that has little more left than it has itself.
        shorter = sum(s for j, (_, s) in enumerate(sizes) if j != i)
        rest_of_long = min(long, size + when / STRETCH)
        assert ended[i + 1] - when <= size + shorter + rest_of_long + 1
    assert ended[0] <= long + sum(size for _, size in sizes)


def test_full_queue_refuses(core: FakeCore, scheduler: Scheduler) -> None:
    held(core, scheduler)
    for n in (1, 2, 3):
        scheduler.submit(request(n))
    with pytest.raises(QueueFullError, match="3 requests wait") as caught:
        scheduler.submit(request(4))
    assert caught.value.retry_after_s == MIN_RETRY_AFTER_S
    counters = scheduler.counters()
    assert (counters.received, counters.refused, counters.queued, counters.running) == (5, 1, 3, 1)


def test_too_many_queued_tokens_are_refused_but_never_a_first_request(
    core: FakeCore, scheduler: Scheduler
) -> None:
    running = held(core, scheduler, tokens=500)
    with pytest.raises(QueueFullError, match="500 tokens wait, the request adds 1"):
        scheduler.submit(request(1))
    core.gate.set()
    outcome_of(running)
    held(core, scheduler, tokens=50)
    scheduler.submit(request(1, 50))
    with pytest.raises(QueueFullError, match="the limit is 100 "):
        scheduler.submit(request(2, 1))


def test_retry_after_is_the_backlog_at_the_recent_rate(
    core: FakeCore, scheduler: Scheduler
) -> None:
    outcome_of(scheduler.submit(request(1, 8)))  # 8 tokens in a millisecond
    assert scheduler.tokens_per_s == pytest.approx(8000)
    held(core, scheduler, tokens=80_000)
    with pytest.raises(QueueFullError) as caught:
        scheduler.submit(request(4))
    assert caught.value.retry_after_s == pytest.approx(10.0)
    backlog = scheduler.backlog()
    assert (backlog.requests, backlog.tokens) == (0, 80_000)


def test_cancelled_request_is_dropped_and_frees_its_place(
    core: FakeCore, scheduler: Scheduler
) -> None:
    held(core, scheduler)
    waiting = [scheduler.submit(request(n)) for n in (1, 2, 3)]
    assert waiting[1].future.cancel()
    late = scheduler.submit(request(4))
    core.gate.set()
    assert outcome_of(late) == 4
    assert core.turns == [[0], [1, 3, 4]]
    assert scheduler.counters().cancelled == 1


def test_expired_request_frees_its_place_at_once(core: FakeCore, scheduler: Scheduler) -> None:
    held(core, scheduler)
    waiting = [scheduler.submit(request(n, timeout_s=60)) for n in (1, 2, 3)]
    for job in waiting:
        scheduler.expire(job)  # the engine is still in its step
    backlog = scheduler.backlog()
    assert (backlog.requests, backlog.oldest_s) == (0, 0.0)
    assert scheduler.counters().queued == 0
    late = [scheduler.submit(request(n)) for n in (4, 5, 6)]
    core.gate.set()
    assert [outcome_of(job) for job in late] == [4, 5, 6]
    assert core.turns == [[0], [4, 5, 6]]


def test_request_that_cannot_be_opened_frees_its_place_at_once(
    core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(core, QueueLimits(max_requests=1))
    running = held(core, scheduler, tokens=16)
    opened = core.open

    def refuse(asked: ScoreRequest) -> FakeWork | None:
        if asked.query[0] == 1:
            core.gate.clear()  # the next step is held
            core.in_step.clear()
            raise ValueError("planted")
        return opened(asked)

    monkeypatch.setattr(core, "open", refuse)
    failing = scheduler.submit(request(1))
    core.gate.set()
    with pytest.raises(ValueError, match="planted"):
        failing.future.result(WAIT_S)
    assert core.in_step.wait(WAIT_S)
    after = scheduler.submit(request(2))
    core.gate.set()
    assert (outcome_of(running), outcome_of(after)) == (0, 2)
    assert scheduler.drain(WAIT_S)


def test_running_request_that_is_cancelled_runs_no_further(
    core: FakeCore, scheduler: Scheduler
) -> None:
    running = held(core, scheduler, tokens=80)
    assert running.future.cancel()
    after = scheduler.submit(request(1))
    core.gate.set()
    outcome_of(after)
    assert core.turns == [[0], [1]]
    assert core.closed == [0]
    assert scheduler.counters().cancelled == 1


def test_request_out_of_time_is_given_up(core: FakeCore, scheduler: Scheduler) -> None:
    running = held(core, scheduler, tokens=80)
    job = scheduler.submit(request(1, timeout_s=0.01))
    assert job.deadline is not None
    time.sleep(0.02)
    core.gate.set()
    with pytest.raises(DeadlineExceededError, match="within 0.01 s"):
        job.future.result(WAIT_S)
    assert outcome_of(running) == 0
    assert all(1 not in turn for turn in core.turns)
    assert scheduler.counters().expired == 1


def test_running_request_out_of_time_is_told_at_once(core: FakeCore, scheduler: Scheduler) -> None:
    core.gate.clear()
    job = scheduler.submit(request(0, 80, timeout_s=60))
    assert core.in_step.wait(WAIT_S)
    scheduler.expire(job)  # the engine is still in its step
    with pytest.raises(DeadlineExceededError):
        job.future.result(0)
    scheduler.expire(job)  # once more does no harm
    core.gate.set()
    outcome_of(scheduler.submit(request(1)))
    assert core.turns[0] == [0]
    assert [turn for turn in core.turns[1:] if 0 in turn] == []
    assert scheduler.counters().expired == 1


def test_server_bounds_the_time_of_every_request(core: FakeCore) -> None:
    scheduler = Scheduler(core, QueueLimits(3, max_timeout_s=5))
    now = time.perf_counter()
    for timeout_s, expected in ((None, 5), (2.0, 2), (100.0, 5)):
        job = scheduler.submit(request(1, timeout_s=timeout_s))
        assert job.deadline == pytest.approx(now + expected, abs=0.5)
    assert scheduler.drain(WAIT_S)


@pytest.mark.parametrize(
    ("planted", "seen"), [(ValueError("x"), ValueError), (StopIteration(), RuntimeError)]
)
def test_exception_reaches_its_request_alone(planted: Exception, seen: type[Exception]) -> None:
    def score(asked: ScoreRequest) -> ScoreResult:
        if asked.query[0] == 1:
            raise planted
        return answer(asked)

    scheduler = Scheduler(FakeCore(score), QueueLimits(3))
    with pytest.raises(seen):
        scheduler.submit(request(1)).future.result(WAIT_S)
    assert outcome_of(scheduler.submit(request(2))) == 2
    counters = scheduler.counters()
    assert (counters.failed, counters.finished, counters.running) == (1, 1, 0)
    assert scheduler.drain(WAIT_S)


@pytest.mark.parametrize("planted", [EngineLostError("x"), SystemExit(1)])
def test_lost_engine_fails_all_and_takes_no_more(core: FakeCore, planted: BaseException) -> None:
    lost: list[BaseException] = []
    scheduler = Scheduler(core, QueueLimits(3), on_lost=lost.append)
    core.lost = planted
    jobs = [held(core, scheduler), scheduler.submit(request(1))]
    core.gate.set()
    for job in jobs:
        with pytest.raises(EngineLostError):
            job.future.result(WAIT_S)
    assert scheduler.drain(WAIT_S)
    assert lost == [planted]
    with pytest.raises((EngineLostError, ShuttingDownError)):
        scheduler.submit(request(2))


def test_failing_step_callback_is_logged_once_and_harms_nobody(
    core: FakeCore, caplog: pytest.LogCaptureFixture
) -> None:
    def on_step(step: StepStats) -> None:
        seen.append(step)
        raise ValueError("planted")

    seen: list[StepStats] = []
    scheduler = Scheduler(core, QueueLimits(3), on_step=on_step)
    assert [outcome_of(scheduler.submit(request(n))) for n in (1, 2, 3)] == [1, 2, 3]
    assert scheduler.drain(WAIT_S)
    assert len(seen) == 3
    (logged,) = [record for record in caplog.records if record.name == "itemwise.scheduler"]
    assert "`on_step` failed" in logged.getMessage()
    assert "planted" in caplog.text


def test_drain_finishes_what_was_taken_and_refuses_the_rest(
    core: FakeCore, scheduler: Scheduler
) -> None:
    running = held(core, scheduler)
    waiting = [scheduler.submit(request(n)) for n in (1, 2)]
    with ThreadPoolExecutor(1) as pool:
        draining = pool.submit(scheduler.drain)
        while not scheduler._draining:
            time.sleep(0.001)
        with pytest.raises(ShuttingDownError):
            scheduler.submit(request(3))
        assert not draining.done()
        core.gate.set()
        assert draining.result(WAIT_S)
    assert [outcome_of(job) for job in (running, *waiting)] == [0, 1, 2]
    assert scheduler.counters().refused == 1


def test_drain_gives_up_after_its_time(core: FakeCore, scheduler: Scheduler) -> None:
    jobs = [held(core, scheduler), scheduler.submit(request(1))]
    assert not scheduler.drain(0.01)
    for job in jobs:
        with pytest.raises(ShuttingDownError):
            job.future.result(0)
    assert scheduler.counters().refused == 2


def test_cancelling_from_an_event_loop_gives_up_the_place(
    core: FakeCore, scheduler: Scheduler
) -> None:
    held(core, scheduler)

    async def leave() -> None:
        waiting = asyncio.wrap_future(scheduler.submit(request(1)).future)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(leave())
    assert scheduler.counters().queued == 0


@given(
    numbers=st.lists(st.tuples(st.integers(-2, 5), st.integers(1, 20)), max_size=12),
    cancelled=st.sets(st.integers(0, 11)),
    expired=st.sets(st.integers(0, 11)),
    limit=st.integers(1, 4),
    max_open=st.integers(1, 3),
)
@settings(max_examples=60)
def test_every_future_ends_and_counters_add_up(
    numbers: list[tuple[int, int]],
    cancelled: set[int],
    expired: set[int],
    limit: int,
    max_open: int,
) -> None:
    scheduler = Scheduler(FakeCore(answer, max_open=max_open), QueueLimits(limit, 60))
    jobs: list[Job] = []
    refused = 0
    for index, (number, tokens) in enumerate(numbers):
        try:
            job = scheduler.submit(request(number, tokens))
        except QueueFullError:
            refused += 1
            continue
        jobs.append(job)
        if index in cancelled:
            job.future.cancel()
        if index in expired:
            scheduler.expire(job)
    outcomes = [_outcome(lambda job=job: outcome_of(job)) for job in jobs]  # type: ignore[misc]
    assert scheduler.drain(WAIT_S)
    counters = scheduler.counters()
    assert counters.received == len(numbers)
    assert counters.refused == refused
    assert counters.finished == outcomes.count("finished")
    assert counters.failed == outcomes.count("failed")
    assert counters.cancelled == outcomes.count("cancelled")
    assert counters.expired == outcomes.count("expired")
    assert (counters.queued, counters.running) == (0, 0)


def _outcome(wait: Callable[[], int]) -> str:
    try:
        wait()
    except CancelledError:
        return "cancelled"
    except DeadlineExceededError:
        return "expired"
    except ValueError:
        return "failed"
    return "finished"


def test_many_threads_get_their_own_answers() -> None:
    scheduler = Scheduler(FakeCore(answer), QueueLimits(1000))

    def client(start: int) -> list[int]:
        numbers = range(start, start + 50)
        jobs = [scheduler.submit(request(n)) for n in numbers]
        return [outcome_of(job) - n for job, n in zip(jobs, numbers, strict=True)]

    with ThreadPoolExecutor(8) as pool:
        differences = list(pool.map(client, range(0, 800, 100)))
    assert scheduler.drain(WAIT_S)
    assert {d for row in differences for d in row} == {0}
    assert scheduler.counters().finished == 400
