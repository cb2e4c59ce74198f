"""Simulated replicas: nothing is lost, equal runs are equal, and latency is what queues have."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from itemwise.bench.serving.traffic import Workload
from itemwise.capacity import replica as replicas
from itemwise.capacity.arrivals import Load, replayed
from itemwise.capacity.replica import Clock, EngineShape, Replica, SimulatedCore
from itemwise.capacity.simulation import Arrival, SimulatedRun, simulate
from itemwise.capacity.step_cost import COOLING_S, StepCost
from itemwise.engine.platform import PLATFORMS, step_shapes
from itemwise.engine.scheduler import QueueLimits, Scheduler, Scored
from itemwise.routing import POLICIES, PolicyName
from itemwise.types import OpenRequest, ScoreRequest, StepOutcome
from tests.capacity.small import CONFIG, COST, ENGINE, LOAD

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def run(
    load: Load, number: int, count: int, policy: PolicyName = "prefix", seed: int = 0
) -> SimulatedRun:
    return simulate(load.arrivals(number, seed), count, POLICIES[policy](seed), ENGINE, COST)


@pytest.mark.parametrize("policy", POLICIES)
def test_everything_that_arrives_is_scored_once(policy: PolicyName) -> None:
    load = replace(LOAD, rate=400.0)  # more than three replicas can do: queues grow
    arrivals = list(load.arrivals(150, seed=3))
    done = simulate(arrivals, 3, POLICIES[policy](1), ENGINE, COST)
    assert [answer.at for answer in done.answers] == [arrival.at for arrival in arrivals]
    assert sum(answer.items for answer in done.answers) == 150 * LOAD.num_items
    # Each token is computed or found, once.
    tokens = 150 * (LOAD.query_tokens + LOAD.num_items * LOAD.item_tokens)
    assert done.computed_tokens + done.shared_tokens == tokens
    assert all(0 <= answer.queue_s <= answer.seconds for answer in done.answers)
    assert all(0 < busy <= 1 for busy in done.busy)


def test_equal_runs_are_equal_and_other_seeds_are_not() -> None:
    assert run(LOAD, 60, 2) == run(LOAD, 60, 2)
    assert run(LOAD, 60, 2) != run(LOAD, 60, 2, seed=1)


def test_lone_request_takes_the_time_of_its_steps() -> None:
    (answer,) = run(replace(LOAD, repeat_share=0), 1, 1).answers
    core = SimulatedCore(ENGINE, COST, Clock(), record=True)
    work = core.open(next(LOAD.arrivals(1)).request)
    assert work is not None
    while not work.done:
        core.step([work])
    (step,) = core.programs.sent
    assert answer.seconds == pytest.approx(COST.host_s(step) + COST.device_s(step))
    slower = simulate(
        LOAD.arrivals(1), 1, POLICIES["random"](0), ENGINE, replace(COST, overhead_s=1)
    )
    assert slower.answers[0].seconds == pytest.approx(answer.seconds + 1)


def test_prefix_routing_finds_more_and_computes_less() -> None:
    load = replace(LOAD, rate=4 * LOAD.rate)
    runs = {name: run(load, 240, 4, name) for name in POLICIES}
    assert runs["prefix"].hit_rate > 1.4 * runs["random"].hit_rate
    assert runs["prefix"].computed_tokens < 0.9 * runs["two-choices"].computed_tokens


def test_one_replica_is_the_same_whatever_the_routing() -> None:
    first, *others = [run(LOAD, 60, 1, name) for name in POLICIES]
    assert all(other == first for other in others)


# A queue with a known answer: each request fills one step, steps take a fixed time.
STEP_S = 0.01


def full_steps(rate: float, number: int) -> Iterator[Arrival]:
    rng, now = random.Random(7), 0.0
    for each in range(number):
        now += rng.expovariate(rate)
        items = [[1] * 128] * 3 + [[1] * 127]
        yield Arrival(now, ScoreRequest([each], items, ((0, 1),) * 4, apply_softmax=True))


def md1_wait(load: float, percentile: float) -> float:
    """The wait in an M/D/1 queue in service times (Crommelin, 1932; Erlang, 1909)."""

    def at_most(wait: float) -> float:
        terms = (
            math.exp(-load * (k - wait)) * (load * (k - wait)) ** k / math.factorial(k)
            for k in range(int(wait) + 1)
        )
        return (1 - load) * math.fsum(terms)

    low, high = 0.0, 30.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if at_most(middle) > percentile else (middle, high)
    return low


def in_a_queue(arrivals: Iterable[float]) -> list[float]:
    """Latency of each in a queue of one server and fixed service time (Lindley, 1952)."""
    free, seconds = 0.0, list[float]()
    for at in arrivals:
        free = max(free, at) + STEP_S
        seconds.append(free - at)
    return seconds


def simulated_latency(number: int) -> tuple[list[float], list[float]]:
    """Latency under full steps at 60 % load, simulated and by the recursion."""
    arrivals = list(full_steps(0.6 / STEP_S, number))
    done = simulate(arrivals, 1, POLICIES["random"](0), ENGINE, StepCost(step_s=STEP_S))
    seconds = [answer.seconds for answer in done.answers]
    return seconds, in_a_queue(arrival.at for arrival in arrivals)


def test_latency_is_that_of_a_queue_with_fixed_service_time() -> None:
    seconds, expected = simulated_latency(400)
    assert seconds == pytest.approx(expected, abs=1e-9)
    # The recursion agrees with the formulas where there are enough arrivals for a percentile.
    gaps = np.random.default_rng(0).exponential(STEP_S / 0.6, 400_000)
    many = in_a_queue(np.cumsum(gaps).tolist())
    assert np.mean(many) == pytest.approx(STEP_S * (1 + 0.6 / (2 * 0.4)), rel=0.03)
    p99 = np.percentile(many, 99)
    assert p99 == pytest.approx(STEP_S * (1 + md1_wait(0.6, 0.99)), rel=0.03)


def test_formula_of_the_queue_agrees_with_published_values() -> None:
    # P(no wait) is 1 - load; and within one service time (1 - load) exp(load).
    assert md1_wait(0.6, 0.4 + 1e-9) == pytest.approx(0, abs=1e-4)
    assert md1_wait(0.6, 0.4 * math.exp(0.6 * 0.999)) == pytest.approx(0.999, abs=1e-3)


def test_a_device_that_was_idle_wakes_up_first() -> None:
    one = ScoreRequest(range(5), [[1] * 5], ((0, 1),))
    cost = StepCost(step_s=0.01, wake_s=0.004)
    # The third comes when the second is just done, the fourth soon after, all others long after.
    times = (10.0, 20.0, 20.014, 20.044, 30.0)
    arrivals = [Arrival(at, one) for at in times]
    done = simulate(arrivals, 1, POLICIES["random"](0), ENGINE, cost)
    part = 0.004 * (1 - math.exp(-0.02 / COOLING_S))
    expected = [0.014, 0.014, 0.01, 0.01 + part, 0.014]
    assert [answer.seconds for answer in done.answers] == pytest.approx(expected, abs=1e-6)


def test_planted_step_that_takes_no_time_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas._Pending, "block_until_ready", lambda self: self)
    seconds, expected = simulated_latency(20)
    assert max(seconds) < 0.5 * min(expected)


def test_planted_loss_of_an_answer_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Replica.end

    def lossy(self: Replica, now: float) -> None:
        if self._outcome is not None:
            self._outcome.finished.clear()
        end(self, now)

    monkeypatch.setattr(Replica, "end", lossy)
    with pytest.raises(AssertionError, match="never ended"):
        run(LOAD, 5, 1)


class SleepingCore(SimulatedCore):
    """The simulated engine in real time: a step sleeps for as long as it takes."""

    def step(self, works: Sequence[OpenRequest]) -> StepOutcome:
        clock = self.clock
        clock.now = time.perf_counter()
        outcome = super().step(works)
        time.sleep(max(0.0, clock.now - time.perf_counter()))
        return outcome


@pytest.mark.slow
def test_scheduler_on_its_thread_has_the_latency_of_the_simulation() -> None:
    cost = StepCost(step_s=0.03, place_s=1e-4)  # far above what the host takes
    load = Load(12.0, 300, 4, 20, 0.5)
    arrivals = list(load.arrivals(120))
    expected = simulate(arrivals, 1, POLICIES["random"](0), ENGINE, cost)
    scheduler = Scheduler(SleepingCore(ENGINE, cost, Clock()), QueueLimits(1000))
    seconds, done, started = dict[int, float](), threading.Event(), time.perf_counter()

    def finish(number: int, future: Future[Scored]) -> None:
        seconds[number] = future.result().total_s
        if len(seconds) == len(arrivals):
            done.set()

    for number, arrival in enumerate(arrivals):
        time.sleep(max(0.0, started + arrival.at - time.perf_counter()))
        job = scheduler.submit(arrival.request)
        job.future.add_done_callback(partial(finish, number))
    assert done.wait(30)
    scheduler.drain(5)
    p50, p95 = np.percentile(list(seconds.values()), (50, 95)) * 1e3
    assert [p50, p95] == pytest.approx(expected.latency_ms(50, 95), rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(5))
def test_simulation_has_the_latency_that_was_measured_on_an_h100(place: int) -> None:
    session = json.loads((RESULTS / "2026-11-26-gpu-session-h100.json").read_text())
    found = session["runs"][4]["stages"]["arrivals"]["runs"][place]
    # Coefficients: least squares over the speeds and latencies of single requests in the same run;
    # the host's part is the device's idle time in the trace of the first.
    engine = EngineShape(step_shapes(CONFIG, PLATFORMS["gpu"], 40960), 4000, CONFIG)
    cost = StepCost(2.13e-3, 2.464e-6, 6.82e-8, 4.06e-10, host_step_s=2.6e-3)
    workload = Workload(151936, shared=0.25)
    arrivals = replayed(workload, found["offered_per_s"], found["requests"])
    done = simulate(arrivals, 1, POLICIES["random"](0), engine, cost)
    measured = [found["latency_ms"][name] for name in ("p50", "p99")]
    assert done.latency_ms(50, 99) == pytest.approx(measured, rel=0.2)
