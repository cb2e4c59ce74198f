from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from itemwise.calibration.examples import Example, Examples, labels_of, side_by_side
from itemwise.calibration.fit import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    KindCalibration,
    _Objective,
    fit,
)
from tests.calibration.synthetic import draw

PRIOR = (0.6, 0.1, -0.3, -0.4)  # mean 0, as fits return them


def arrays(examples: list[Example]) -> Examples:
    return side_by_side(examples, labels_of(examples))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("seed", [1, 2])
def test_temperature_and_prior_come_back(temperature: float, seed: int) -> None:
    found = fit(arrays(draw(4000, temperature, PRIOR, seed=seed)))
    assert found.temperature_error is not None
    assert found.temperature_error < 0.04 * temperature
    assert abs(found.temperature - temperature) < 4 * found.temperature_error
    assert [label for label, _ in found.log_prior] == [*"ABCD"]
    # 4000 draws: a standard error of about 0.04.
    np.testing.assert_allclose([value for _, value in found.log_prior], PRIOR, atol=0.16)


@pytest.mark.parametrize("temperature", [0.1, 0.3, 2.5, 8.0])
def test_temperature_of_two_options_comes_back(temperature: float) -> None:
    # Newton's first step from 1 overshoots to below zero here.
    found = fit(arrays(draw(400, temperature, (0.5, -0.5))))
    assert found.temperature_error is not None
    assert abs(found.temperature - temperature) < 4 * found.temperature_error


def test_stated_error_is_that_of_repeated_draws() -> None:
    found = [fit(arrays(draw(400, 2.5, PRIOR, seed=seed))) for seed in range(60)]
    spread = np.std([one.temperature for one in found], ddof=1)
    stated = np.mean([one.temperature_error for one in found if one.temperature_error])
    assert spread == pytest.approx(stated, rel=0.3)  # 60 draws know a deviation to 9 %


def test_fit_is_the_minimum() -> None:
    examples = arrays(draw(300, 2.5, PRIOR))
    found, objective = fit(examples), _Objective(examples)
    best = np.array([1 / found.temperature, *(-value for _, value in found.log_prior)])
    assert np.abs(objective.gradient(best)).max() < 1e-6
    for place in range(len(best)):
        for change in (-1e-2, 1e-2):
            moved = best.copy()
            moved[place] += change
            assert objective.value(moved) > objective.value(best)


def test_derivatives_are_those_of_the_value() -> None:
    objective = _Objective(arrays(draw(50, 2.5, PRIOR)))
    point, size = np.array([0.7, 0.1, -0.2, 0.3, 0.4]), 1e-5
    for place in range(len(point)):
        move = np.eye(len(point))[place] * size
        slope = (objective.value(point + move) - objective.value(point - move)) / (2 * size)
        assert objective.gradient(point)[place] == pytest.approx(slope, rel=1e-6, abs=1e-6)
        row = (objective.gradient(point + move) - objective.gradient(point - move)) / (2 * size)
        np.testing.assert_allclose(objective.hessian(point)[place], row, rtol=1e-5, atol=1e-5)


def test_order_and_constants_change_nothing() -> None:
    examples = draw(200, 2.5, PRIOR)
    found = fit(arrays(examples))
    shifted = [
        replace(one, logits=tuple(logit + 50 for logit in one.logits)) for one in examples[::-1]
    ]
    again = fit(arrays(shifted))
    assert again.temperature == pytest.approx(found.temperature, rel=1e-9)
    np.testing.assert_allclose(
        [value for _, value in again.log_prior], [value for _, value in found.log_prior], atol=1e-9
    )


def test_answers_without_exception_reach_the_lowest_temperature() -> None:
    certain = [
        replace(one, answer=int(np.argmax(one.logits))) for one in draw(100, 1.0, (0.0, 0.0))
    ]
    found = fit(arrays(certain))
    assert found.temperature == MIN_TEMPERATURE
    assert found.at_bound
    assert found.temperature_error is None


def test_logits_that_say_the_contrary_reach_the_highest_temperature() -> None:
    contrary = [
        replace(one, logits=tuple(-logit for logit in one.logits)) for one in draw(400, 1.0, PRIOR)
    ]
    found = fit(arrays(contrary))
    assert found.temperature == MAX_TEMPERATURE
    assert found.at_bound


def test_equal_logits_leave_the_prior_to_say_it() -> None:
    equal = [replace(one, logits=(0.0,) * len(one.logits)) for one in draw(1000, 1.0, (0.0, 0.0))]
    often = [replace(one, answer=int(number % 4 == 0)) for number, one in enumerate(equal)]
    found = fit(arrays(often))
    p = found.probabilities(arrays(often))
    np.testing.assert_allclose(p[0], [0.75, 0.25], atol=5e-3)
    assert found.temperature == 1


def test_a_label_seldom_offered_stays_near_the_others() -> None:
    examples = draw(200, 1.0, (0.0, 0.0))
    seldom = Example((*"ABC",), (0.0, 0.0, 0.0), 2, "seldom")
    prior = dict(fit(arrays([*examples, seldom])).log_prior)
    assert abs(prior["C"]) < 1.0


def test_probabilities_are_of_the_offered_labels_alone() -> None:
    examples = arrays([Example((*"AB",), (1.0, 0.0), 0), Example((*"ABC",), (0.0, 0.0, 3.0), 2)])
    p = KindCalibration(2.0, (("A", 0.5), ("C", -0.5))).probabilities(examples)
    assert p[0, 2] == 0
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert p[0, 0] == p[0, 1]  # a logit of 1 at temperature 2 is what the prior of A takes
    np.testing.assert_allclose(p[1, 2] / p[1, 1], np.exp(3 / 2 + 0.5))
