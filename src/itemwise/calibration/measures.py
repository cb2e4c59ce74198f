"""How good probabilities are: accuracy, log loss, Brier score, expected calibration error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from itemwise.calibration.examples import BoolArray, Examples, Float64Array

MAX_BINS = 10
MIN_PER_BIN = 10  # fewer would measure chance


@dataclass(frozen=True)
class Outcomes:
    """What became of E decisions.

    Attributes:
        confidence: float64 [E], probability of the most probable option.
        correct: bool [E], whether that is the right one.
        log_losses: float64 [E], -log probability of the right option, in nats.
        brier_scores: float64 [E], sum over the options of (probability - truth)^2, 0 to 2.
    """

    confidence: Float64Array
    correct: BoolArray
    log_losses: Float64Array
    brier_scores: Float64Array

    def __len__(self) -> int:
        return len(self.confidence)


def outcomes(probabilities: Float64Array, examples: Examples) -> Outcomes:
    """Compares probabilities, float64 [E, L], with the right answers.

    Of equally probable options the first counts as the answer.
    """
    rows = np.arange(len(examples))
    right = probabilities[rows, examples.answers]
    truth = np.zeros_like(probabilities)
    truth[rows, examples.answers] = 1
    return Outcomes(
        probabilities.max(axis=1),
        probabilities.argmax(axis=1) == examples.answers,
        -np.log(np.maximum(right, np.finfo(np.float64).tiny)),
        ((probabilities - truth) ** 2).sum(axis=1),
    )


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of several question types as one."""
    return Outcomes(
        np.concatenate([part.confidence for part in parts]),
        np.concatenate([part.correct for part in parts]),
        np.concatenate([part.log_losses for part in parts]),
        np.concatenate([part.brier_scores for part in parts]),
    )


@dataclass(frozen=True)
class Bin:
    """Decisions of like confidence.

    Attributes:
        count: how many.
        confidence: their mean confidence.
        accuracy: the share of them that is right.
    """

    count: int
    confidence: float
    accuracy: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy (Wilson 1927)."""
        z, n, p = 1.96, self.count, self.accuracy
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return max(0.0, middle - half), min(1.0, middle + half)


def reliability(found: Outcomes) -> list[Bin]:
    """Bins of equal mass, from the least confident to the most.

    Up to 10 bins of at least 10 decisions. Equal confidences are never divided, so the order of the
    decisions has no influence.
    """
    count = len(found)
    num_bins = min(MAX_BINS, max(1, count // MIN_PER_BIN))
    ordered = np.sort(found.confidence)
    edges = ordered[[place * count // num_bins for place in range(1, num_bins)]]
    bin_of = np.searchsorted(edges, found.confidence, side="right")
    return [
        Bin(
            int(inside.sum()),
            float(found.confidence[inside].mean()),
            float(found.correct[inside].mean()),
        )
        for inside in (bin_of == number for number in range(num_bins))
        if inside.any()
    ]


@dataclass(frozen=True)
class Measures:
    """How good the probabilities of some decisions are.

    Attributes:
        count: decisions.
        accuracy: share whose most probable option is right.
        log_loss: mean, in nats.
        brier: mean, 0 to 2.
        ece: expected calibration error: mean over the bins' decisions of |accuracy - confidence|.
        confidence: mean probability of the most probable option.
    """

    count: int
    accuracy: float
    log_loss: float
    brier: float
    ece: float
    confidence: float


def measure(found: Outcomes) -> Measures:
    """The measures of outcomes, at least one."""
    gaps = sum(bin.count * abs(bin.accuracy - bin.confidence) for bin in reliability(found))
    return Measures(
        count=len(found),
        accuracy=float(found.correct.mean()),
        log_loss=float(found.log_losses.mean()),
        brier=float(found.brier_scores.mean()),
        ece=gaps / len(found),
        confidence=float(found.confidence.mean()),
    )
