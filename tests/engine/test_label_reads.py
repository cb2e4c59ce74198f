"""Long lists of labels are read in units, and give the bits of short ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemwise.engine import batcher
from itemwise.engine.engine import Engine
from itemwise.engine.label_reads import label_cost, label_units, rows_of
from itemwise.engine.results import probabilities
from itemwise.types import ScoreRequest

label_lists = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=30), min_size=1)


@given(label_lists, st.integers(1, 9))
def test_units_hold_every_label_of_their_row(labels: list[list[int]], columns: int) -> None:
    rows, table = label_units(labels, columns)
    found = rows_of(table.astype(np.float32), labels)
    assert [list(row[: len(ids)]) for row, ids in zip(found, labels, strict=True)] == labels
    assert not any(row[len(ids) :].any() for row, ids in zip(found, labels, strict=True))
    assert rows.tolist() == sorted(rows.tolist())


def test_only_long_lists_cost() -> None:
    assert label_cost([[1] * 8] * 1000) == 0
    assert label_cost([[1] * 72]) == 1
    assert label_cost([list(range(150_000))]) > 2000


@given(st.integers(1, 5), st.integers(1, 300), st.integers(0, 9))
def test_softmax_adds_in_the_order_of_the_labels(rows: int, width: int, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    request = ScoreRequest([1], [[2]] * rows, (tuple(range(width)),) * rows, apply_softmax=True)
    found = probabilities(request, logits, np.zeros(rows, np.float32))
    for row, scores in zip(logits.astype(np.float64), found, strict=True):
        weights = np.exp(row - row.max())
        total = 0.0
        for weight in weights:
            total += weight
        assert (weights / total).astype(np.float32).tobytes() == scores.tobytes()


ITEMS = [[5], [6, 7], [8], [9]]


def logits(engine: Engine, labels: Sequence[tuple[int, ...]]) -> list[list[bytes]]:
    """Bits of each item's probabilities over the vocabulary."""
    request = ScoreRequest([1, 2, 3], ITEMS, tuple(labels))
    found = engine.score([request])[0].scores
    return [[np.float32(score).tobytes() for score in row] for row in found]


@pytest.mark.parametrize("algorithm", ["prefill_extend", "packed"])
@pytest.mark.parametrize("widths", [(300, 300, 300, 300), (1, 9, 300, 8), (17, 1, 1, 1)])
def test_long_lists_have_the_bits_of_short_ones(
    shared_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    algorithm: str,
    widths: tuple[int, ...],
) -> None:
    engine = shared_engine(multi_item_algorithm=algorithm)
    labels = [tuple(range(3 * row, 3 * row + width)) for row, width in enumerate(widths)]
    monkeypatch.setattr(batcher, "MAX_LABEL_READS", 1)  # so that items go into several steps
    long = logits(engine, labels)
    for column in range(0, max(widths), 50):
        one = logits(engine, [(ids[min(column, len(ids) - 1)],) for ids in labels])
        assert [row[0] for row in one] == [row[min(column, len(row) - 1)] for row in long]


def test_labels_of_a_step_are_bounded(
    shared_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = shared_engine()
    labels = [tuple(range(400))] * len(ITEMS)

    def steps() -> int:
        before = engine.info()["steps"]
        logits(engine, labels)
        return int(engine.info()["steps"] - before)

    together = steps()
    monkeypatch.setattr(batcher, "MAX_LABEL_READS", 1)
    engine.forget_prefixes()
    assert steps() > together
