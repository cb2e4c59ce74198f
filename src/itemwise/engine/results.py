"""The results of a request as they come in, and the scores made of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from itemwise.request.read_out import softmax_of_labels
from itemwise.types import Float32Array, ScoreRequest


class Results:
    """Label logits of each item as they come in, in one array where all have as many labels."""

    def __init__(self, request: ScoreRequest) -> None:
        self._request = request
        num_items = len(request.items)
        widths = set(map(len, request.labels))
        self._width = widths.pop() if len(widths) == 1 else None
        self._together = np.zeros((num_items, self._width or 0), np.float32)
        self._apart: list[Float32Array] = [np.empty(0, np.float32)] * num_items
        self._logsumexps = np.zeros(num_items, np.float32)
        self._present = np.zeros(num_items, np.bool_)
        self.num_missing = num_items

    def missing(self) -> list[int]:
        """Items without a result."""
        found: list[int] = np.flatnonzero(~self._present).tolist()
        return found

    def take(
        self,
        items: Sequence[int],
        logits: Float32Array | Sequence[Float32Array],
        logsumexps: Float32Array | None,
    ) -> None:
        """Takes in the results of some items; see `ExactRequest.take_results`."""
        where = np.asarray(items, np.intp)
        if self._width is not None:
            self._together[where] = np.asarray(logits)[:, : self._width]
        else:
            for row, item in enumerate(items):
                self._apart[item] = logits[row][: len(self._request.labels[item])].copy()
        if logsumexps is not None:
            self._logsumexps[where] = logsumexps
        self._present[where] = True
        self.num_missing -= len(items)

    def logits(self) -> Float32Array | list[Float32Array]:
        """The labels' logits as they came in."""
        return self._together if self._width is not None else self._apart

    def logsumexps(self) -> Float32Array | None:
        """Log-sum-exps of all logits, where scores are shares of the vocabulary."""
        return None if self._request.apply_softmax else self._logsumexps

    def scores(self) -> Float32Array | list[Float32Array]:
        """Softmax over the labels, or the share of the vocabulary.

        In float64, item by item the same operations in the same order whatever the other items,
        then rounded to float32.
        """
        if self._width is not None:
            return probabilities(self._request, self._together, self._logsumexps)
        return [
            probabilities(self._request, row[None], self._logsumexps[i : i + 1])[0]
            for i, row in enumerate(self._apart)
        ]


def probabilities(
    request: ScoreRequest, logits: Float32Array, logsumexps: Float32Array
) -> Float32Array:
    """Scores [items, labels] from label logits [items, labels] and log-sum-exps [items]."""
    if request.apply_softmax:
        return softmax_of_labels(logits, request.temperature)
    scaled = logits.astype(np.float64) * (1 / request.temperature)
    return np.exp(scaled - logsumexps[:, None]).astype(np.float32)
