"""How a ranking's score comes of the logits of the labels.

An item's *margin* is what rankings sort by: a logit or a difference of logits, which does not
saturate as probabilities do. Its score is the margin itself or its sigmoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from itemwise.types import Float32Array

Float64Array = NDArray[np.float64]
Kind = Literal["log_odds", "logit"]
Activation = Literal["sigmoid", "none"]


@dataclass(frozen=True)
class ReadOut:
    """How a score comes of logits.

    Attributes:
        kind: `log_odds`: log of the first label's probability over that of all others, of two
            labels the difference of their logits. `logit`: the first label's logit.
        scale: times which that is taken.
        activation: `sigmoid` makes a score between 0 and 1; of `log_odds` with scale 1 it is the
            first label's probability among the labels. `none` leaves the margin.
    """

    kind: Kind = "log_odds"
    scale: float = 1.0
    activation: Activation = "sigmoid"

    def margins(self, logits: Sequence[Float32Array] | Float32Array) -> Float64Array:
        """Float64 [items], from float32 [items, labels]; an item's does not depend on others."""
        table = np.asarray(logits, np.float64)
        margins: Float64Array = table[:, 0]
        if self.kind == "log_odds":
            most = table[:, 1:].max(axis=1)
            total = np.zeros(len(table))
            for column in range(1, table.shape[1]):  # a fixed order, which sum() does not promise
                total += np.exp(table[:, column] - most)
            margins = margins - most - np.log(total)
        return self.scale * margins

    def scores(self, margins: Float64Array) -> Float64Array:
        """Float64 [items], what clients see."""
        if self.activation == "none":
            return margins
        weights = np.exp(-np.abs(margins))  # never overflows
        scores: Float64Array = np.where(margins >= 0, 1.0, weights) / (1.0 + weights)
        return scores


def softmax_of_labels(logits: Float32Array, temperature: float) -> Float32Array:
    """Float32 [items, labels], the softmax over each item's labels.

    In float64, item by item the same operations in the same order whatever the other items.

    Args:
        logits: float32 [items, labels].
        temperature: divides the logits.
    """
    scaled = logits.astype(np.float64) * (1 / temperature)
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    total = np.cumsum(weights, axis=1)[:, -1:]  # a fixed order, which sum() does not promise
    scores: Float32Array = (weights / total).astype(np.float32)
    return scores
