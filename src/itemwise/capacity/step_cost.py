"""What a step costs: seconds from what is in it, by a few coefficients.

The coefficients are fitted to measured steps (`measure.py`) or follow from arithmetic on the shape
of a model and the figures of a chip (`devices.py`). Plain NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls  # type: ignore[import-untyped]  # comes with JAX

from itemwise.engine.step_packer import StepBatch

COOLING_S = 0.04  # idle time after which 63 % of `wake_s` counts


@dataclass(frozen=True)
class StepWork:
    """What is in a step.

    Attributes:
        places: token places of its compiled size.
        tokens: tokens in use.
        pairs: pairs of a token and a context token that it reads.
        rows: rows that are scored.
    """

    places: int
    tokens: int
    pairs: int
    rows: int


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step, linear in what is in it.

    Attributes:
        step_s: of any step.
        place_s: of a token place of its compiled size, whether in use or not.
        token_s: of a token.
        pair_s: of a pair of a token and a context token.
        row_s: of a scored row.
        least_s: no step takes less, since all weights are read.
        host_step_s: of the host, before it sends a step.
        host_row_s: of the host for a scored row, likewise.
        overhead_s: of a request beside queue and engine: HTTP, tokenising, the answer.
        wake_s: what a step takes longer after the device was idle for long; see `idle_s`.
    """

    step_s: float = 0.0
    place_s: float = 0.0
    token_s: float = 0.0
    pair_s: float = 0.0
    row_s: float = 0.0
    least_s: float = 0.0
    host_step_s: float = 0.0
    host_row_s: float = 0.0
    overhead_s: float = 0.0
    wake_s: float = 0.0

    def __post_init__(self) -> None:
        wrong = [f"`{name}` {value}" for name, value in asdict(self).items() if not value >= 0]
        if wrong:
            raise ValueError(f"expected 0 or more, got {', '.join(wrong)}")

    def device_s(self, work: StepWork) -> float:
        """Seconds that the device takes."""
        seconds = self.step_s + self.place_s * work.places + self.token_s * work.tokens
        return max(self.least_s, seconds + self.pair_s * work.pairs + self.row_s * work.rows)

    def idle_s(self, seconds: float) -> float:
        """Seconds more that a step takes after the device was idle for so many seconds.

        A processor that waits falls asleep and loses its caches to others. Measured on two cores:
        2 to 3 ms after 20 ms, 6 after 60, 7 after 200.
        """
        return self.wake_s * -math.expm1(-seconds / COOLING_S)

    def host_s(self, work: StepWork) -> float:
        """Seconds that the host takes to prepare it."""
        return self.host_step_s + self.host_row_s * work.rows


def work_in(batch: StepBatch) -> StepWork:
    """What is in a packed step."""
    arrays = batch.arrays
    lanes, places = int(arrays.num_lanes), int(arrays.num_places)
    lengths = np.diff(arrays.lane_start[:lanes], append=places)
    context = arrays.context_lens[:lanes].sum(1)
    return StepWork(
        batch.shape.tokens, batch.num_tokens, int(lengths @ context), len(batch.score_ids)
    )


def fit(
    device: Sequence[tuple[StepWork, float]], host: Sequence[tuple[StepWork, float]]
) -> StepCost:
    """The coefficients that fit measured steps best: least squares of relative errors, none < 0.

    Args:
        device: steps and seconds of the device.
        host: steps and seconds of the host before they were sent.
    """
    on_device = [(1, work.places, work.tokens, work.pairs, work.rows) for work, _ in device]
    step_s, place_s, token_s, pair_s, row_s = _solve(on_device, [s for _, s in device])
    host_step_s, host_row_s = _solve([(1, work.rows) for work, _ in host], [s for _, s in host])
    return StepCost(
        step_s,
        place_s,
        token_s,
        pair_s,
        row_s,
        host_step_s=host_step_s,
        host_row_s=host_row_s,
    )


def _solve(rows: Sequence[tuple[int, ...]], seconds: Sequence[float]) -> list[float]:
    weights: NDArray[np.float64] = 1 / np.asarray(seconds)
    matrix = np.asarray(rows, np.float64) * weights[:, None]
    scale = np.maximum(np.abs(matrix).max(0), 1e-300)  # columns of like size
    solution, _ = nnls(matrix / scale, np.ones(len(rows)))
    return [float(value) for value in solution / scale]
