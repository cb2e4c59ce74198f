from __future__ import annotations

import numpy as np
import pytest

from itemwise.calibration.examples import Example, labels_of, side_by_side
from itemwise.calibration.fit import KindCalibration
from itemwise.calibration.measures import (
    Bin,
    Outcomes,
    joined,
    measure,
    outcomes,
    reliability,
)
from tests.calibration.synthetic import draw


def of(confidence: list[float], correct: list[bool]) -> Outcomes:
    ones = np.ones(len(confidence))
    return Outcomes(np.array(confidence), np.array(correct), ones, ones)


def test_measures_of_decisions_worked_out_by_hand() -> None:
    examples = side_by_side(
        [
            Example((*"AB",), (np.log(0.8), np.log(0.2)), 0),
            Example((*"ABC",), (np.log(0.5), np.log(0.25), np.log(0.25)), 1),
        ],
        "ABC",
    )
    found = outcomes(KindCalibration().probabilities(examples), examples)
    np.testing.assert_allclose(found.confidence, [0.8, 0.5])
    assert found.correct.tolist() == [True, False]
    np.testing.assert_allclose(found.log_losses, [-np.log(0.8), -np.log(0.25)])
    np.testing.assert_allclose(found.brier_scores, [2 * 0.2**2, 0.5**2 + 0.75**2 + 0.25**2])
    measures = measure(found)
    assert (measures.count, measures.accuracy) == (2, 0.5)
    assert measures.ece == pytest.approx(0.65 - 0.5)  # one bin
    assert measures.confidence == pytest.approx(0.65)


def test_error_of_overconfidence_is_its_excess() -> None:
    # Ten bins of 100: confidence 0.5, 0.55, ..., each right in 30 points fewer of 100.
    confidence = np.repeat(0.5 + 0.05 * np.arange(10), 100)
    correct = [place % 100 < 20 + 5 * (place // 100) for place in range(1000)]
    found = of(confidence.tolist(), correct)
    assert len(reliability(found)) == 10
    assert measure(found).ece == pytest.approx(0.3)


def test_error_of_true_probabilities_is_that_of_chance() -> None:
    examples = draw(20000, 2.5, (0.5, -0.5), seed=3)
    arrays = side_by_side(examples, labels_of(examples))
    true = measure(
        outcomes(KindCalibration(2.5, (("A", 0.5), ("B", -0.5))).probabilities(arrays), arrays)
    )
    assert true.ece < 0.015
    plain = measure(outcomes(KindCalibration().probabilities(arrays), arrays))
    assert plain.ece > 0.06
    assert true.log_loss < plain.log_loss
    assert true.brier < plain.brier


def test_bins_have_equal_mass_and_divide_no_ties() -> None:
    found = of([0.6] * 15 + [0.9] * 25 + [0.7] * 20, [True] * 60)
    assert [bin.count for bin in reliability(found)] == [15, 20, 25]
    assert [bin.confidence for bin in reliability(found)] == pytest.approx([0.6, 0.7, 0.9])
    spread = of(np.linspace(0.5, 1, 200).tolist(), [True] * 200)
    assert [bin.count for bin in reliability(spread)] == [20] * 10


def test_bins_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.integers(5, 11, 300) / 10, rng.random(300) < 0.7
    order = rng.permutation(300)
    once = reliability(of(confidence.tolist(), correct.tolist()))
    again = reliability(of(confidence[order].tolist(), correct[order].tolist()))
    assert [bin.count for bin in once] == [bin.count for bin in again]
    assert [bin.accuracy for bin in once] == pytest.approx([bin.accuracy for bin in again])


def test_few_decisions_make_few_bins() -> None:
    assert len(reliability(of([0.5, 0.9], [True, False]))) == 1
    assert len(reliability(of(np.linspace(0.5, 1, 35).tolist(), [True] * 35))) == 3


def test_interval_is_wilsons() -> None:
    # Agresti & Coull 1998 give 0 to 0.278 for 0 of 10 and, by symmetry, 0.722 to 1 for 10 of 10.
    assert Bin(10, 0.9, 0.0).interval == pytest.approx((0.0, 0.278), abs=5e-4)
    assert Bin(10, 0.9, 1.0).interval == pytest.approx((0.722, 1.0), abs=5e-4)


def test_certain_and_wrong_is_a_finite_loss() -> None:
    examples = side_by_side([Example((*"AB",), (0.0, -10000.0), 1)], "AB")
    assert np.isfinite(
        measure(outcomes(KindCalibration().probabilities(examples), examples)).log_loss
    )


def test_joined_outcomes_are_measured_as_one() -> None:
    both = joined([of([0.5] * 10, [True] * 10), of([0.9] * 30, [False] * 30)])
    assert measure(both).accuracy == 0.25
    assert len(both) == 40
