"""The fit: the temperature and the label prior under which known answers are most likely.

A calibrated probability is

    p(option) = softmax(logit / T - log prior(label of the option))

over the options of the question. In a = 1/T and b = -log prior the mean log loss is convex (it is
multinomial logistic regression with one shared slope), so Newton's method finds the one minimum.
Temperature scaling: Guo et al. 2017, arXiv 1706.04599. Division by a prior of the labels: Zhao et
al. 2021, arXiv 2102.09690.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from itemwise.calibration.examples import BoolArray, Examples, Float64Array

# Between them a fit is believed. Beyond the first, answers are right without exception; beyond the
# second, the logits say nothing about the answers, or the contrary.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 100.0
# The log priors have a normal prior of their own with this deviation, in nats, so that a label
# that is rarely offered stays near the others.
PRIOR_DEVIATION = 1.0
# The same for a = 1/T, about 1: of no weight beside one example, unless logits are all equal.
SLOPE_DEVIATION = 1000.0
_MAX_STEPS = 200
_TOLERANCE = 1e-10  # of the largest change of a parameter


@dataclass(frozen=True)
class KindCalibration:
    """A temperature and a label prior.

    Attributes:
        temperature: divides the logits.
        log_prior: for each label, the log of its prior, with mean 0; other labels have 0.
        temperature_error: standard error of the temperature; None if it is at a bound.
    """

    temperature: float = 1.0
    log_prior: tuple[tuple[str, float], ...] = ()
    temperature_error: float | None = None

    @property
    def at_bound(self) -> bool:
        """Whether the temperature is the lowest or highest that a fit can have."""
        return self.temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE)

    def probabilities(self, examples: Examples) -> Float64Array:
        """Float64 [E, L], calibrated; 0 where an example lacks the label."""
        prior = dict(self.log_prior)
        shift = np.array([-prior.get(label, 0.0) for label in examples.labels])
        return softmax(examples.logits / self.temperature + shift)


def softmax(table: Float64Array) -> Float64Array:
    """Softmax of each row; minus infinity becomes 0."""
    weights = np.exp(table - table.max(axis=1, keepdims=True))
    found: Float64Array = weights / weights.sum(axis=1, keepdims=True)
    return found


def fit(examples: Examples) -> KindCalibration:
    """The calibration of least log loss, with the priors held near each other.

    The order of the examples changes nothing but last bits.
    """
    objective = _Objective(examples)
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    start = np.zeros(1 + len(examples.labels))
    start[0] = 1.0
    found = _minimize(objective, start, most_slope=10 * high)
    error = None
    if not low < found[0] < high:
        # In a convex problem the best within a bound is on the bound.
        found[0] = np.clip(found[0], low, high)
        found = _minimize(objective, found)
        temperature = MAX_TEMPERATURE if found[0] == low else MIN_TEMPERATURE
    else:
        temperature = float(1 / found[0])
        covariance = np.linalg.inv(objective.hessian(found))
        error = float(np.sqrt(covariance[0, 0]) * temperature**2)
    prior = found[1:].mean() - found[1:]
    log_prior = tuple(zip(examples.labels, map(float, prior), strict=True))
    return KindCalibration(temperature, log_prior, error)


class _Objective:
    """Log loss of all examples, plus the squares of what the deviations hold back.

    Parameters are [1 + L]: a, then b.
    """

    def __init__(self, examples: Examples) -> None:
        self._offered: BoolArray = np.isfinite(examples.logits)
        self._logits = np.where(self._offered, examples.logits, 0.0)
        rows = np.arange(len(examples))
        self._right = (rows, examples.answers)
        self._counts = examples.answer_counts()
        num_labels = len(examples.labels)
        self._center = np.concatenate([[1.0], np.zeros(num_labels)])
        self._ridge = np.array([SLOPE_DEVIATION, *[PRIOR_DEVIATION] * num_labels]) ** -2.0

    def value(self, parameters: Float64Array) -> float:
        table = self._table(parameters)
        most = table.max(axis=1)
        total = np.log(np.exp(table - most[:, None]).sum(axis=1)) + most
        held = self._ridge @ (parameters - self._center) ** 2 / 2
        return float((total - table[self._right]).sum() + held)

    def gradient(self, parameters: Float64Array) -> Float64Array:
        p = softmax(self._table(parameters))
        slope = (p * self._logits).sum() - self._logits[self._right].sum()
        found = np.concatenate([[slope], p.sum(axis=0) - self._counts])
        found += self._ridge * (parameters - self._center)
        return found

    def hessian(self, parameters: Float64Array) -> Float64Array:
        p = softmax(self._table(parameters))
        mean = (p * self._logits).sum(axis=1, keepdims=True)
        size = len(parameters)
        found: Float64Array = np.zeros((size, size))
        found[0, 0] = (p * (self._logits - mean) ** 2).sum()
        found[0, 1:] = found[1:, 0] = (p * (self._logits - mean)).sum(axis=0)
        found[1:, 1:] = np.diag(p.sum(axis=0)) - p.T @ p
        return found + np.diag(self._ridge)

    def _table(self, parameters: Float64Array) -> Float64Array:
        table: Float64Array = parameters[0] * self._logits + parameters[1:]
        return np.where(self._offered, table, -np.inf)


def _minimize(
    objective: _Objective,
    parameters: Float64Array,
    most_slope: float | None = None,
) -> Float64Array:
    """The minimum over all parameters; without `most_slope` over all but the first.

    Newton's method with steps halved until the value falls. It ends early where the first parameter
    is beyond `most_slope`, upwards or downwards: it grows without end if answers are right (or
    wrong) without exception.
    """
    free = slice(0 if most_slope else 1, None)
    parameters = parameters.copy()
    value = objective.value(parameters)
    for _ in range(_MAX_STEPS):
        gradient = objective.gradient(parameters)[free]
        step = np.linalg.solve(objective.hessian(parameters)[free, free], -gradient)
        size = 1.0
        while True:
            moved = parameters.copy()
            moved[free] += size * step
            moved_value = objective.value(moved)
            if moved_value <= value + 1e-4 * size * (gradient @ step) or size < 1e-8:
                break
            size /= 2
        if moved_value > value:
            break  # at the minimum, as far as float64 can tell
        change = np.abs(moved - parameters).max()
        parameters, value = moved, moved_value
        if change < _TOLERANCE:
            break
        if most_slope and abs(parameters[0]) > most_slope:
            break
    return parameters
