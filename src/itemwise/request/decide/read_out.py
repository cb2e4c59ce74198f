"""How probabilities of answers come of the logits of labels, and numbers of probabilities.

Every function takes one question alone, and adds in an order that nothing else decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from itemwise.request.read_out import Float64Array
from itemwise.types import Float32Array


def label_logits(logits: Float32Array, groups: Sequence[int]) -> Float64Array:
    """Float64 [labels], of each label with its other forms added up.

    Args:
        logits: float32 [tokens], of the labels and then of their other forms.
        groups: the label that each of the tokens belongs to.
    """
    number = max(groups) + 1
    found = logits[:number].astype(np.float64)
    for token in range(number, len(groups)):
        found[groups[token]] = np.logaddexp(found[groups[token]], np.float64(logits[token]))
    return found


def scaled(
    logits: Float64Array, temperature: float = 1.0, prior: Sequence[float] | None = None
) -> Float64Array:
    """Float64 [labels], of which a softmax gives the labels' probabilities.

    Args:
        logits: float64 [labels].
        temperature: divides them.
        prior: probability of each label whatever is asked, which is divided out.
    """
    found: Float64Array = logits * (1 / temperature)
    return found if prior is None else found - np.log(np.asarray(prior, np.float64))


def probabilities(
    rows: Sequence[Float64Array], orders: Sequence[Sequence[int]]
) -> tuple[float, ...]:
    """The probability of each answer, from the scaled logits of one prompt or several.

    From several, the normalised mean of the log-probabilities. Its sums are exact until they are
    rounded once, so it does not matter which order comes first: if the answers are shown in all
    their rotations, rotating them in the request changes no bit. From one, what `POST /v1/score`
    gives.

    Args:
        rows: for each prompt, the scaled logits of its places.
        orders: for each prompt, which answer was shown at each place.

    Returns:
        numbers that fit float32, in its shortest digits.
    """
    if len(rows) == 1:
        weights = np.exp(rows[0] - rows[0].max())
        found: Float64Array = weights / np.cumsum(weights)[-1]
        return _rounded(found)
    by_answer: list[list[float]] = [[] for _ in orders[0]]
    for row, order in zip(rows, orders, strict=True):
        for place, logprob in enumerate(_normalized(row).tolist()):
            by_answer[order[place]].append(logprob)
    means = [math.fsum(values) / len(values) for values in by_answer]
    return _rounded(np.exp(_normalized(np.array(means))))


def _normalized(logits: Float64Array) -> Float64Array:
    """Log-probabilities; the sum in them does not depend on the order."""
    shifted = logits - logits.max()
    found: Float64Array = shifted - math.log(math.fsum(np.exp(shifted).tolist()))
    return found


def _rounded(values: Float64Array) -> tuple[float, ...]:
    return tuple(float(str(value)) for value in values.astype(np.float32))


def label_mass(logits: Float32Array, logsumexp: float) -> float:
    """The share that labels have of the whole vocabulary at temperature 1.

    Args:
        logits: float32 [tokens], of the labels and their other forms.
        logsumexp: of all the model's logits.
    """
    shares = np.exp(logits.astype(np.float64) - logsumexp)
    return min(1.0, math.fsum(shares.tolist()))


def choice_confidence(probabilities: Sequence[float]) -> float:
    """How far the most probable option is above a uniform guess, 0 to 1.

    Source: TypeSafe's documentation of System One.
    """
    number = len(probabilities)
    if number == 1:
        return 1.0
    return min(1.0, max(0.0, (number * max(probabilities) - 1) / (number - 1)))


def rating_confidence(probabilities: Sequence[float]) -> float:
    """One less the mean distance from the most probable level, as a share of a uniform one's.

    Source: TypeSafe's documentation of System One.
    """
    number = len(probabilities)
    if number == 1:
        return 1.0
    mode = max(range(number), key=probabilities.__getitem__)
    spread = math.fsum(p * abs(i - mode) for i, p in enumerate(probabilities))
    uniform = math.fsum(abs(i - (number - 1) / 2) for i in range(number)) / number
    return max(0.0, 1 - spread / uniform)
