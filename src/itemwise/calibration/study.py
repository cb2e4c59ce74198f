"""A study: calibrations fitted to one half of the examples and tested on the other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from itemwise.calibration.examples import Example, Examples, labels_of, side_by_side
from itemwise.calibration.fit import KindCalibration, fit
from itemwise.calibration.measures import (
    Bin,
    Measures,
    Outcomes,
    joined,
    measure,
    outcomes,
    reliability,
)
from itemwise.errors import LabelledSetError

MIN_EXAMPLES = 20  # of a question type, in each half
_UNCALIBRATED = KindCalibration()


@dataclass(frozen=True)
class View:
    """The test half under one calibration."""

    measures: Measures
    bins: Sequence[Bin]


@dataclass(frozen=True)
class KindStudy:
    """What became of one question type.

    Attributes:
        num_fitted: examples that the calibration was fitted to.
        calibration: what was fitted.
        before: the test half as the model answers.
        after: the same with the calibration.
    """

    num_fitted: int
    calibration: KindCalibration
    before: View
    after: View

    @property
    def is_better(self) -> bool:
        """Whether the calibration makes the test half's right answers more likely."""
        return self.after.measures.log_loss < self.before.measures.log_loss


@dataclass(frozen=True)
class Study:
    """Every question type, and all of them together.

    Attributes:
        kinds: by type of question.
        before: all test halves as the model answers.
        after: the same with the calibrations that are better than none.
    """

    kinds: Mapping[str, KindStudy]
    before: View
    after: View

    def calibrations(self) -> dict[str, KindCalibration]:
        """By question type, those that are better than none."""
        return {name: one.calibration for name, one in self.kinds.items() if one.is_better}


def in_test_half(group: str) -> bool:
    """Which half a group of examples is in: one bit of a hash of its name.

    So a group stays in its half when others come or go.
    """
    return bool(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[0] & 1)


def study(examples: Mapping[str, Sequence[Example]]) -> Study:
    """Fits each question type to one half of its examples and tests it on the other.

    Args:
        examples: by question type. Those with a single option say nothing and are left out.

    Raises:
        LabelledSetError: a type has too few examples in a half, or always the same answer; one
            message has all problems.
    """
    halves = {}
    problems = []
    for name, found in examples.items():
        telling = [one for one in found if len(one.labels) > 1]
        if not telling:
            continue
        labels = labels_of(telling)
        halves[name] = tuple(
            side_by_side([one for one in telling if in_test_half(one.group) is half], labels)
            for half in (False, True)
        )
        problems += _problems(name, *halves[name])
    if not halves:
        problems.append("there are no questions with two or more options")
    if problems:
        raise LabelledSetError(problems)
    kinds, before, after = {}, [], []
    for name, (fitted, tested) in halves.items():
        calibration = fit(fitted)
        plain = outcomes(_UNCALIBRATED.probabilities(tested), tested)
        better = outcomes(calibration.probabilities(tested), tested)
        kinds[name] = KindStudy(len(fitted), calibration, _view(plain), _view(better))
        before.append(plain)
        after.append(better if kinds[name].is_better else plain)
    return Study(kinds, _view(joined(before)), _view(joined(after)))


def _view(found: Outcomes) -> View:
    return View(measure(found), reliability(found))


def _problems(name: str, fitted: Examples, tested: Examples) -> list[str]:
    if min(len(fitted), len(tested)) < MIN_EXAMPLES:
        return [
            f"`{name}` has {len(fitted)} answers to fit and {len(tested)} to test, expected at "
            f"least {MIN_EXAMPLES} of each; add labelled questions of this type, in requests of "
            f"their own, or leave the type out"
        ]
    if (fitted.answer_counts() > 0).sum() < 2:
        only = fitted.labels[fitted.answers[0]]
        return [
            f"the right answer of all {len(fitted)} `{name}` questions to fit is the one with "
            f"label {only!r}, expected different answers; add questions with others, or change "
            f"the order of options"
        ]
    return []
