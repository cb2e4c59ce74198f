"""A short measurement of an engine: requests of several sizes, one at a time, give its `StepCost`.

The same requests run through a simulated engine, which says what was in each step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from itemwise.capacity.replica import Clock, EngineShape, SimulatedCore
from itemwise.capacity.step_cost import StepCost, StepWork, fit
from itemwise.engine.engine import Engine
from itemwise.engine.scheduler import Core
from itemwise.types import ScoreRequest, StepStats

MAX_ROUNDS = 15  # of all requests; their median counts
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
    """

    steps: list[tuple[StepWork, float]]
    host_s: float | None


def engine_shape(engine: Engine) -> EngineShape:
    """The shape of an engine that runs."""
    return EngineShape(engine.shapes, engine.num_pages, engine.config)


def measure(engine: Engine, seconds: float = 10.0) -> StepCost:
    """The cost of steps on this machine, with this model, in about so many seconds.

    Each request is scored twice in a round: with its query computed, and with it known.
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
    for same in zip(*rounds, strict=True):
        for place, (work, _) in enumerate(same[0].steps):
            device.append((work, statistics.median(one.steps[place][1] for one in same)))
        if same[0].host_s is not None:
            work = same[0].steps[0][0]
            host.append((work, statistics.median(one.host_s or 0.0 for one in same)))
    return fit(device, host)


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
        for _ in range(2):
            yield _measure_one(engine, simulated, request)


def _measure_one(engine: Engine, simulated: SimulatedCore, request: ScoreRequest) -> Measured:
    first = len(simulated.programs.sent)
    _score(simulated, request)
    works = simulated.programs.sent[first:]
    begun = time.perf_counter()
    landed = _score(engine, request)
    total = time.perf_counter() - begun
    steps = list(zip(works, (step.seconds for step in landed), strict=True))
    return Measured(steps, max(total - landed[0].seconds, 1e-9) if len(landed) == 1 else None)


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
