"""Examples of a known truth, as a model answers that is too sure and favours some labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from itemwise.calibration.examples import Example

LETTERS = "ABCDEFGH"


def draw(
    count: int,
    temperature: float = 1.0,
    log_prior: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
    *,
    seed: int = 0,
    spread: float = 2.0,
    least: int = 2,
) -> list[Example]:
    """Examples with 2 to len(log_prior) options.

    The truth is softmax(t) for t ~ Normal(0, spread); the model says (t + log prior) * temperature,
    so softmax(logits / temperature - log prior) is the truth.
    """
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        n = int(rng.integers(least, len(log_prior) + 1))
        truth = rng.normal(0, spread, n)
        p = np.exp(truth - truth.max())
        answer = int(rng.choice(n, p=p / p.sum()))
        logits = (truth + np.asarray(log_prior[:n])) * temperature + rng.normal()
        found.append(Example(tuple(LETTERS[:n]), tuple(logits.tolist()), answer, f"group {number}"))
    return found
