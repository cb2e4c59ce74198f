"""Labelled examples as arrays: what a calibration is fitted to and tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Example:
    """One question of known answer, as the model reads it.

    Attributes:
        labels: the options' labels, such as `A`, `B`, in the options' order.
        logits: their logits or log-probabilities, up to a constant; temperature 1, no prior.
        answer: place of the right option.
        group: name of what is not divided between the halves, such as the request's id.
    """

    labels: tuple[str, ...]
    logits: tuple[float, ...]
    answer: int
    group: str = ""


@dataclass(frozen=True)
class Examples:
    """Examples of one question type, side by side.

    Attributes:
        labels: every label that an example has, L of them.
        logits: float64 [E, L], the largest of each row 0; minus infinity where an example lacks
            the label.
        answers: int64 [E], column of the right label.
    """

    labels: tuple[str, ...]
    logits: Float64Array
    answers: IntArray

    def __len__(self) -> int:
        return len(self.answers)

    def answer_counts(self) -> IntArray:
        """int64 [L], how often each label is right."""
        return np.bincount(self.answers, minlength=len(self.labels))


def side_by_side(examples: Sequence[Example], labels: Sequence[str]) -> Examples:
    """Examples as arrays.

    Args:
        examples: of one question type.
        labels: the columns; every example's labels are among them.
    """
    column = {label: place for place, label in enumerate(labels)}
    logits = np.full((len(examples), len(labels)), -np.inf)
    answers = np.zeros(len(examples), np.int64)
    for row, example in enumerate(examples):
        own = np.asarray(example.logits, np.float64)
        logits[row, [column[label] for label in example.labels]] = own - own.max()
        answers[row] = column[example.labels[example.answer]]
    return Examples(tuple(labels), logits, answers)


def labels_of(examples: Sequence[Example]) -> tuple[str, ...]:
    """Every label of the examples, in a fixed order: short ones first, then by the alphabet."""
    found = {label for example in examples for label in example.labels}
    return tuple(sorted(found, key=lambda label: (len(label), label)))
