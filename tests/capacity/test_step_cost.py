"""The cost of a step: fitted coefficients, and what is counted in a step."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemwise.capacity.replica import Clock, SimulatedCore
from itemwise.capacity.step_cost import StepCost, StepWork, fit
from itemwise.types import ScoreRequest
from tests.capacity.small import ENGINE

WORKS = st.builds(
    StepWork, st.integers(1, 4096), st.integers(1, 4096), st.integers(0, 10**7), st.integers(0, 99)
)
TRUE = StepCost(1e-3, 1e-5, 2e-5, 3e-9, 1e-5, host_step_s=4e-4, host_row_s=2e-6)


def works(seed: int) -> list[StepWork]:
    rng = random.Random(seed)
    return [
        StepWork(rng.choice((64, 256, 512)), rng.randint(1, 500), rng.randint(0, 10**6), each)
        for each in range(40)
    ]


def test_fit_finds_the_coefficients() -> None:
    given_works = works(0)
    found = fit(
        [(work, TRUE.device_s(work)) for work in given_works],
        [(work, TRUE.host_s(work)) for work in given_works],
    )
    for work in works(1):
        assert found.device_s(work) == pytest.approx(TRUE.device_s(work), rel=1e-6)
        assert found.host_s(work) == pytest.approx(TRUE.host_s(work), rel=1e-6)


def test_fit_of_noisy_steps_is_near_and_never_negative() -> None:
    rng = random.Random(2)
    noisy = [(work, TRUE.device_s(work) * rng.uniform(0.8, 1.2)) for work in works(0) + works(5)]
    found = fit(noisy, [(work, 1e-4) for work, _ in noisy])
    for work in works(1):
        assert found.device_s(work) == pytest.approx(TRUE.device_s(work), rel=0.15)


@given(WORKS, WORKS)
def test_more_in_a_step_never_takes_less(one: StepWork, other: StepWork) -> None:
    both = StepWork(
        *(
            getattr(one, name) + getattr(other, name)
            for name in ("places", "tokens", "pairs", "rows")
        )
    )
    assert TRUE.device_s(both) >= max(TRUE.device_s(one), TRUE.device_s(other))
    assert TRUE.host_s(both) >= TRUE.host_s(one)


def test_no_step_takes_less_than_the_weights_take_to_read() -> None:
    assert StepCost(token_s=1e-6, least_s=0.1).device_s(StepWork(64, 5, 0, 0)) == 0.1


def test_negative_coefficient_is_refused() -> None:
    with pytest.raises(ValueError, match="`pair_s` -1"):
        StepCost(pair_s=-1)


def test_step_is_counted_as_it_is_packed() -> None:
    core = SimulatedCore(ENGINE, StepCost(), Clock(), record=True)
    work = core.open(ScoreRequest(range(300), [[1] * 20] * 4, ((0, 1),) * 4))
    assert work is not None
    while not work.done:
        core.step([work])
    # Rows of 128, 128 and 44 query tokens see 0, 128 and 256 tokens; items see all 300.
    pairs = 128 * 128 + 44 * 256 + 80 * 300
    assert core.programs.sent == [StepWork(512, 380, pairs, 4)]
