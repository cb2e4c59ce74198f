"""What the TPU kernel has beyond the suite in `test_step.py`: copies that run beside products."""

from __future__ import annotations

import functools

import pytest
from jax.experimental.pallas import tpu as pltpu

from itemwise.ops.step import tpu as tpu_step
from itemwise.ops.step.tpu import attend_tpu
from tests.ops.step.steps import TILED, cases, make_step, run


@pytest.mark.slow
def test_one_place_for_all_blocks_is_seen(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tpu_step, "slot_of", lambda block: block * 0)
    attend = functools.partial(attend_tpu, interpret=pltpu.InterpretParams(detect_races=True))
    run(attend, make_step(TILED, cases(TILED)["a long context"], (4, 2, 64)))
    printed = capfd.readouterr()
    assert "RACE" in printed.out + printed.err
