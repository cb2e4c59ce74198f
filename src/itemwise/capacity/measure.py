"""A short measurement of an engine: requests of several sizes, one at a time, give its `StepCost`.

The same requests run through a simulated engine, which says what was in each step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from itemwise.capacity.replica import Clock, EngineShape, SimulatedCore
from itemwise.capacity.step_cost import StepCost, StepWork, fit
from itemwise.engine.engine import Engine
from itemwise.engine.scheduler import Core
from itemwise.types import ScoreRequest, StepStats

MAX_ROUNDS = 15  # of all requests; their median counts
PAUSE_S = 0.1  # after which a request finds the device asleep
# Tokens of the query, items, tokens of an item; long queries only where the model takes them.
SIZES = (
    *((query, 1, 5) for query in (4, 60, 250, 500, 1000, 2000)),
    *((300, *items) for items in ((1, 20), (4, 10), (10, 20), (40, 20), (128, 4), (4, 200))),
    *((1500, *items) for items in ((10, 20), (40, 20), (128, 4))),
)


@dataclass(frozen=True)
class Measured:
    """One request, scored alone.

    Attributes:
        steps: what was in each of its steps, and the seconds that it took.
        host_s: seconds beside the steps; only known where there was one step.
        wake_s: seconds more that it took after a pause; None where that was not tried.
    """

    steps: list[tuple[StepWork, float]]
    host_s: float | None
    wake_s: float | None = None


def engine_shape(engine: Engine) -> EngineShape:
    """The shape of an engine that runs."""
    return EngineShape(engine.shapes, engine.num_pages, engine.config)


def measure(engine: Engine, seconds: float = 10.0) -> StepCost:
    """The cost of steps on this machine, with this model, in about so many seconds.

    Each request is scored three times in a round: with its query computed, with it known, and so
    again after a pause.
    """
    requests = list(_requests(engine))
    simulated = SimulatedCore(engine_shape(engine), StepCost(), Clock(), record=True)
    rounds, started = list[list[Measured]](), time.perf_counter()
    while len(rounds) < MAX_ROUNDS:
        rounds.append(list(_one_round(engine, simulated, requests)))
        spent = time.perf_counter() - started
        if spent + spent / len(rounds) > seconds and len(rounds) > 2:
            break
    rounds = rounds[1:]  # the first one warms up
    device, host = list[tuple[StepWork, float]](), list[tuple[StepWork, float]]()
    wake = list[float]()
    for same in zip(*rounds, strict=True):
        for place, (work, _) in enumerate(same[0].steps):
            device.append((work, statistics.median(one.steps[place][1] for one in same)))
        if same[0].host_s is not None:
            work = same[0].steps[0][0]
            host.append((work, statistics.median(one.host_s or 0.0 for one in same)))
        if same[0].wake_s is not None:
            wake.append(statistics.median(one.wake_s or 0.0 for one in same))
    after_pause = StepCost(wake_s=1.0).idle_s(PAUSE_S)
    return replace(fit(device, host), wake_s=max(0.0, statistics.median(wake)) / after_pause)


def _requests(engine: Engine) -> Iterator[ScoreRequest]:
    rng, vocab_size = np.random.default_rng(0), engine.model_config.vocab_size
    longest = min(engine.max_seq_len, (engine.num_pages - 2) * engine.shape.page_tokens)
    num_labels = engine.model_config.num_labels or 2
    for query, items, item in SIZES:
        if query + item <= longest:
            tokens = rng.integers(0, vocab_size, (items, item), np.int32)
            labels = (tuple(range(num_labels)),) * items
            ids = rng.integers(0, vocab_size, query, np.int32)
            yield ScoreRequest(ids, list(tokens), labels, apply_softmax=True)


def _one_round(
    engine: Engine, simulated: SimulatedCore, requests: Sequence[ScoreRequest]
) -> Iterator[Measured]:
    for request in requests:
        for core in (engine, simulated):
            core.forget_prefixes()
        yield _measure_one(engine, simulated, request, 0.0)
        yield _measure_one(engine, simulated, request, PAUSE_S)


def _measure_one(
    engine: Engine, simulated: SimulatedCore, request: ScoreRequest, pause_s: float
) -> Measured:
    first = len(simulated.programs.sent)
    _score(simulated, request)
    works = simulated.programs.sent[first:]
    landed, total = _timed(engine, request)
    wake_s = None
    if pause_s:
        time.sleep(pause_s)
        wake_s = _timed(engine, request)[1] - total
    steps = list(zip(works, (step.seconds for step in landed), strict=True))
    host_s = max(total - landed[0].seconds, 1e-9) if len(landed) == 1 else None
    return Measured(steps, host_s, wake_s)


def _timed(engine: Engine, request: ScoreRequest) -> tuple[list[StepStats], float]:
    """Scores a request alone; its steps, and the seconds of it all."""
    begun = time.perf_counter()
    landed = _score(engine, request)
    return landed, time.perf_counter() - begun


def _score(core: Core, request: ScoreRequest) -> list[StepStats]:
    """Scores a request alone; its steps."""
    work, landed = core.open(request), list[StepStats]()
    assert work is not None, "nothing else has pages"
    while not work.done:
        outcome = core.step([work])
        for _, error in outcome.failed:
            raise error
        landed += outcome.landed
    return landed
