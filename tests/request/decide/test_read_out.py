"""Probabilities of answers, and the numbers made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemwise.request.decide.read_out import (
    choice_confidence,
    label_logits,
    label_mass,
    probabilities,
    rating_confidence,
    scaled,
)
from itemwise.request.read_out import softmax_of_labels

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12)


@given(LOGITS, st.floats(0.1, 10))
def test_one_prompt_has_the_probabilities_of_the_score_api(
    values: list[float], temperature: float
) -> None:
    logits = np.array(values, np.float32)
    (expected,) = softmax_of_labels(logits[None], temperature)
    found = probabilities([scaled(logits.astype(np.float64), temperature)], [range(len(values))])
    assert np.array(found, np.float32).tobytes() == expected.tobytes()


@given(st.integers(2, 9), st.integers(0, 8), st.integers(0, 999))
def test_all_rotations_make_the_order_of_options_void(number: int, by: int, seed: int) -> None:
    rows = list(np.random.default_rng(seed).normal(size=(number, number)) * 5)
    orders = [[(start + place) % number for place in range(number)] for start in range(number)]
    found = probabilities(rows, orders)
    # The same prompts, of a request whose options are rotated: answer i is called i - by there.
    by %= number
    renamed = [[(answer - by) % number for answer in order] for order in orders]
    turned = probabilities(rows[by:] + rows[:by], renamed[by:] + renamed[:by])
    assert turned == tuple(found[(place + by) % number] for place in range(number))
    assert math.fsum(found) == pytest.approx(1, abs=1e-6)


def test_mean_of_logs_is_not_the_mean() -> None:
    rows = [np.log([0.9, 0.1]), np.log([0.5, 0.5])]
    found = probabilities(rows, [[0, 1], [0, 1]])
    assert found[0] / found[1] == pytest.approx(math.sqrt(9.0), rel=1e-5)


def test_other_forms_add_up() -> None:
    logits = np.log(np.array([0.2, 0.3, 0.4], np.float32))
    merged = label_logits(logits, [0, 1, 0])
    np.testing.assert_allclose(np.exp(merged), [0.6, 0.3], rtol=1e-6)
    assert label_mass(logits, 0.0) == pytest.approx(0.9, rel=1e-6)
    assert label_mass(np.zeros(3, np.float32), 0.0) == 1.0


def test_prior_is_divided_out() -> None:
    logits = np.log(np.array([0.8, 0.2]))
    found = probabilities([scaled(logits, 1.0, [0.8, 0.2])], [[0, 1]])
    assert found == pytest.approx((0.5, 0.5))
    sharper = probabilities([scaled(logits, 0.5)], [[0, 1]])
    assert sharper[0] == pytest.approx(16 / 17)


@pytest.mark.parametrize(
    ("values", "choice", "rating"),
    [
        ([1.0], 1.0, 1.0),
        ([0.5, 0.5], 0.0, 0.0),
        ([1.0, 0.0, 0.0], 1.0, 1.0),
        ([0.6, 0.4], 0.2, 0.2),
        # Mode 0: spread 0.3 * 1 + 0.2 * 2 = 0.7; uniform spread (1 + 0 + 1) / 3.
        ([0.5, 0.3, 0.2], 0.25, 0.0),
        ([0.8, 0.1, 0.1], 0.7, 1 - 0.3 * 3 / 2),
    ],
)
def test_confidence_is_as_documented(values: list[float], choice: float, rating: float) -> None:
    assert choice_confidence(values) == pytest.approx(choice)
    assert rating_confidence(values) == pytest.approx(rating)
