from __future__ import annotations

import math

import pytest

from itemwise.validation.measures import (
    abs_diffs,
    average,
    largest,
    max_abs_diff,
    speed,
)


def test_differences_are_exact_for_equal_decimals() -> None:
    assert abs_diffs([[0.1, 0.9]], [[0.1, 0.9]]) == [[0.0, 0.0]]
    assert max_abs_diff([[0.5], [0.25]], [[0.5], [0.5]]) == 0.25
    assert average([[0.0, 1.0], [2.0]]) == 1.0
    assert largest([]) == average([]) == 0.0


def test_nan_is_no_small_difference() -> None:
    assert math.isnan(max_abs_diff([[0.1], [math.nan]], [[0.1], [0.2]]))
    assert math.isnan(max_abs_diff([[math.nan], [0.1]], [[0.1], [0.2]]))


def test_rows_of_different_numbers_of_items_do_not_compare() -> None:
    with pytest.raises(ValueError, match="1 items, `b` has 2"):
        abs_diffs([[1.0]], [[1.0], [2.0]])


def test_speed_counts_items() -> None:
    found = speed([2.0, 1.0, 3.0], 8)
    assert found["latencies_sec"] == [2.0, 1.0, 3.0]
    assert (found["p50_sec"], found["items_per_sec_p50"]) == (2.0, 4.0)
    assert found["p95_sec"] == pytest.approx(2.9)
