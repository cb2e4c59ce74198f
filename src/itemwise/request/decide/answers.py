"""Answers to typed questions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from itemwise.request.decide.questions import Asked
from itemwise.request.decide.read_out import choice_confidence, rating_confidence


@dataclass(frozen=True)
class Reading:
    """A prompt that was read for an answer, to ask it again elsewhere or to calibrate.

    Attributes:
        token_ids: of the prompt, the shared part in front.
        label_ids: token of each answer's label, in the order of the request.
        logits: of these labels, other forms added up, before temperature and prior.
    """

    token_ids: tuple[int, ...]
    label_ids: tuple[int, ...]
    logits: tuple[float, ...]


@dataclass(frozen=True)
class YesNoAnswer:
    """Whether it is true.

    Attributes:
        probability: that it is.
        probabilities: of yes and of no; they sum to 1.
        label_mass: share of the labels in the whole vocabulary; None unless asked for.
        readings: one for each order of the answers; empty unless asked for.
    """

    probability: float
    probabilities: tuple[float, ...]
    label_mass: float | None = None
    readings: tuple[Reading, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class ChoiceAnswer:
    """Which option it is.

    Attributes:
        choice: the most probable option; the first of several.
        probabilities: by option; they sum to 1.
        confidence: how far the choice is above a uniform guess, 0 to 1.
        label_mass: share of the labels in the whole vocabulary; None unless asked for.
        readings: one for each order of the answers; empty unless asked for.
    """

    choice: str
    probabilities: Mapping[str, float]
    confidence: float
    label_mass: float | None = None
    readings: tuple[Reading, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class RatingAnswer:
    """Which level it is.

    Attributes:
        score: the expected level, a number from 0 on.
        probabilities: of each level; they sum to 1.
        confidence: 1 if all is on one level, 0 if levels are as spread as when they are uniform.
        label_mass: share of the labels in the whole vocabulary; None unless asked for.
        readings: one for each order of the answers; empty unless asked for.
    """

    score: float
    probabilities: tuple[float, ...]
    confidence: float
    label_mass: float | None = None
    readings: tuple[Reading, ...] = field(default=(), repr=False)


Answer: TypeAlias = YesNoAnswer | ChoiceAnswer | RatingAnswer


@dataclass(frozen=True)
class Decisions:
    """The answers about one state.

    Attributes:
        answers: by the caller's id of the question, in the order of the request.
        prompt_tokens: tokens of the request, the shared prefix counted once.
        shared_tokens: tokens that all questions share.
        cached_tokens: those of them that were found in the page cache.
    """

    answers: Mapping[str, Answer]
    prompt_tokens: int
    shared_tokens: int
    cached_tokens: int


def answer_of(
    question: Asked,
    probabilities: tuple[float, ...],
    label_mass: float | None = None,
    readings: tuple[Reading, ...] = (),
) -> Answer:
    """The answer to a question from the probabilities of its answers."""
    if question.kind == "yes_no":
        return YesNoAnswer(probabilities[0], probabilities, label_mass, readings)
    if question.kind == "choice":
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        return ChoiceAnswer(
            question.names[best],
            dict(zip(question.names, probabilities, strict=True)),
            choice_confidence(probabilities),
            label_mass,
            readings,
        )
    return RatingAnswer(
        math.fsum(level * p for level, p in enumerate(probabilities)),
        probabilities,
        rating_confidence(probabilities),
        label_mass,
        readings,
    )
