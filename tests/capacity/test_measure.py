"""A measurement of an engine whose costs are known: a simulated one, on simulated time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from itemwise.capacity import measure as measuring
from itemwise.capacity.measure import measure
from itemwise.capacity.replica import Clock, SimulatedCore
from itemwise.capacity.step_cost import StepCost, StepWork
from itemwise.engine.engine import Engine
from tests.capacity.small import COST, ENGINE

WORKS = [StepWork(64, 5, 50, 1), StepWork(256, 200, 60_000, 10), StepWork(512, 500, 10**6, 40)]


class KnownEngine(SimulatedCore):
    """What a measurement asks of an engine."""

    def __init__(self, cost: StepCost, clock: Clock) -> None:
        super().__init__(ENGINE, cost, clock)
        self.shapes, self.shape = ENGINE.shapes, ENGINE.shapes[-1]
        self.num_pages, self.config = ENGINE.num_pages, ENGINE.config
        self.max_seq_len = 2048
        self.model_config = SimpleNamespace(vocab_size=1000, num_labels=None)


def measured(cost: StepCost, monkeypatch: pytest.MonkeyPatch) -> StepCost:
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=clock, sleep=sleep))
    engine: Any = KnownEngine(cost, clock)
    return measure(cast(Engine, engine), seconds=1.0)


@pytest.mark.parametrize("wake_s", [0.0, 0.004])
def test_costs_of_a_known_engine_are_found(wake_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # The simulated host would spend its time within steps, while others run.
    cost = replace(COST, host_step_s=0.0, host_row_s=0.0, wake_s=wake_s)
    found = measured(cost, monkeypatch)
    for work in WORKS:
        assert found.device_s(work) == pytest.approx(cost.device_s(work), rel=1e-3)
    assert found.wake_s == pytest.approx(wake_s, rel=1e-3, abs=1e-9)
