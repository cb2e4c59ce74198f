"""Scores of logits: right values, and an order that does not saturate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemwise.request.read_out import ReadOut

LOGITS = st.floats(-60, 60, width=32)


@given(rows=st.lists(st.lists(LOGITS, min_size=3, max_size=3), min_size=1, max_size=5))
def test_log_odds_become_the_probability_of_the_first_label(rows: list[list[float]]) -> None:
    logits = np.array(rows, np.float32)
    read_out = ReadOut()
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    expected = shifted[:, 0] / shifted.sum(axis=1)
    scores = read_out.scores(read_out.margins(logits))
    assert np.allclose(scores, expected, rtol=1e-9, atol=1e-15)


def test_margins_order_what_probabilities_cannot() -> None:
    logits = np.array([[50.0, 0.0], [70.0, 0.0], [60.0, 0.0]], np.float32)
    read_out = ReadOut()
    margins = read_out.margins(logits)
    assert set(read_out.scores(margins)) == {1.0}
    assert np.argsort(-margins).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("read_out", "expected"),
    [
        (ReadOut("logit"), 1 / (1 + np.exp(-3.0))),
        (ReadOut("logit", scale=0.2), 1 / (1 + np.exp(-0.6))),
        (ReadOut("logit", activation="none"), 3.0),
        (ReadOut(activation="none"), 2.0),
    ],
)
def test_read_outs_of_published_rerankers(read_out: ReadOut, expected: float) -> None:
    margins = read_out.margins([np.array([3.0, 1.0], np.float32)])
    assert read_out.scores(margins) == pytest.approx([expected], rel=1e-12)


def test_very_unsure_scores_do_not_overflow() -> None:
    scores = ReadOut().scores(np.array([-2000.0, 2000.0]))
    assert scores.tolist() == [0.0, 1.0]
