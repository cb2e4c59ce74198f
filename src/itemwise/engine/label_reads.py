"""How the labels of a step's rows are read: a few of a row at a time, in units.

The program that reads labels takes a hidden state and `columns` labels in each of its I places. A
row with more labels takes several places, with the same hidden state in each; a place's result does
not depend on where it is, nor on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from itemwise.types import Float32Array, Int32Array

FREE_LABELS = 8  # of an item: they are read with any step
LABELS_PER_TOKEN = 64  # labels that cost about as much as a token that is computed


def num_units(num_labels: int, columns: int) -> int:
    """Places that a row with so many labels takes."""
    return -(-num_labels // columns)


def label_cost(labels: Sequence[Sequence[int]]) -> int:
    """Tokens that cost as much as reading the labels of items that have many."""
    return sum(max(0, len(ids) - FREE_LABELS) for ids in labels) // LABELS_PER_TOKEN


def label_units(labels: Sequence[Sequence[int]], columns: int) -> tuple[Int32Array, Int32Array]:
    """The row of each unit, int32 [units], and its labels, int32 [units, columns], 0 beyond.

    Units are in the order of their rows; each row has at least one label.
    """
    lengths = np.fromiter(map(len, labels), np.int64, len(labels))
    counts = -(-lengths // columns)
    firsts = (np.cumsum(counts) - counts) * columns
    table = np.zeros(int(counts.sum()) * columns, np.int32)
    places = np.repeat(firsts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    table[places] = np.fromiter(chain.from_iterable(labels), np.int32, int(lengths.sum()))
    rows = np.repeat(np.arange(len(labels), dtype=np.int32), counts)
    return rows, table.reshape(-1, columns)


def rows_of(
    units: Float32Array, labels: Sequence[Sequence[int]]
) -> Float32Array | list[Float32Array]:
    """Label logits of each row, from those of its units [units, columns].

    float32 [rows, at least as many columns as labels] where all rows take as many units; otherwise
    an array of each row.
    """
    columns = units.shape[1]
    counts = [num_units(len(ids), columns) for ids in labels]
    if len(set(counts)) == 1:
        return units[: sum(counts)].reshape(len(labels), -1)
    ends = np.cumsum(counts)
    return [units[end - count : end].reshape(-1) for count, end in zip(counts, ends, strict=True)]
