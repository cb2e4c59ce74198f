"""Muon: momentum whose update is made orthogonal, for the matrices of a model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

# Of the quintic iteration: Jordan et al., "Muon: an optimizer for hidden layers" (2024).
# Size of an update beside AdamW's: Liu et al., "Muon is scalable for LLM training" (2025).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_ADAMW_RMS = 0.2


class Muon:
    """Updates matrices of one shape together, in float32.

    `torch.optim.Muon` iterates in bfloat16, one matrix at a time: on a CPU without bfloat16 units
    that takes longer than the model's forward and backward passes.

    Args:
        matrices: parameters of two axes.
        lr: step size, comparable to AdamW's; may be set between steps.
        momentum: share of the old momentum that is kept.
    """

    def __init__(self, matrices: Iterable[Any], lr: float, momentum: float = 0.95) -> None:
        import torch

        by_shape: dict[tuple[int, ...], list[Any]] = {}
        for matrix in matrices:
            by_shape.setdefault(tuple(matrix.shape), []).append(matrix)
        self._groups = [
            (group, torch.zeros(len(group), *shape)) for shape, group in by_shape.items()
        ]
        self._momentum = momentum
        self.lr = lr

    def step(self) -> None:
        """Updates every matrix by its gradient, and forgets the gradients."""
        import torch

        with torch.no_grad():
            for matrices, momentum in self._groups:
                grads = torch.stack([matrix.grad for matrix in matrices])
                momentum.lerp_(grads, 1 - self._momentum)
                updates = _orthogonal(grads.lerp(momentum, self._momentum))
                size = self.lr * _ADAMW_RMS * math.sqrt(max(updates.shape[1:]))
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.add_(update, alpha=-size)
                    matrix.grad = None


def _orthogonal(matrices: Any) -> Any:
    """Matrices [n, rows, columns] with all singular values brought near 1."""
    if matrices.shape[1] > matrices.shape[2]:
        return _orthogonal(matrices.mT).mT
    a, b, c = _COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x
