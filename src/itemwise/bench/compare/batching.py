"""Batches of token ids, for the PyTorch ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Tokens = Sequence[int]


def batches(rows: Sequence[Tokens], max_tokens: int) -> list[list[int]]:
    """Indices of rows by batch of similar lengths; the longest rows come first.

    A batch has at most `max_tokens`, including padding to its longest row, or a single row.
    """
    left, found = sorted(range(len(rows)), key=lambda i: len(rows[i])), []
    while left:
        size = max(1, max_tokens // len(rows[left[-1]]))
        found.append(left[-size:])
        del left[-size:]
    return found


def runs(items: Sequence[Tokens], max_tokens: int) -> list[list[Tokens]]:
    """Consecutive items for each sequence: at most `max_tokens`, or a single item."""
    found: list[list[Tokens]] = [[]]
    for item in items:
        if found[-1] and sum(map(len, found[-1])) + len(item) > max_tokens:
            found.append([])
        found[-1].append(item)
    return found


def pad(rows: Sequence[Tokens]) -> tuple[Any, Any]:
    """Rows padded on the right, [rows, longest], and the index of each row's last token."""
    lengths = [len(row) for row in rows]
    tokens = np.zeros((len(rows), max(lengths)), np.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return torch.tensor(tokens), torch.tensor(lengths) - 1
