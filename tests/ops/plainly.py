"""What attention means, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


def attention_weights(q: NDArray[Any], k: NDArray[Any], visible: NDArray[np.bool_]) -> Float64Array:
    """Softmax of the scaled scores.

    Args:
        q: [t, N, H].
        k: [s, K, H]; each of the K heads serves N / K heads of `q`.
        visible: [t, s].

    Returns:
        [N, t, s].
    """
    scores = by_head(q) @ by_head(k, len(q[0])).swapaxes(1, 2) / np.sqrt(q.shape[2])
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    found: Float64Array = weights / weights.sum(-1, keepdims=True)
    return found


def attention(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], visible: NDArray[np.bool_]
) -> Float64Array:
    """Values [s, K, H] under these weights: [t, N, H]."""
    weights = attention_weights(q, k, visible)
    return (weights @ by_head(v, len(q[0]))).swapaxes(0, 1)


def by_head(array: NDArray[Any], num_heads: int | None = None) -> Float64Array:
    """[t, N, H] as [N, t, H], each head repeated so that there are `num_heads`."""
    array = np.asarray(array, np.float64).swapaxes(0, 1)
    return array.repeat((num_heads or len(array)) // len(array), 0)
