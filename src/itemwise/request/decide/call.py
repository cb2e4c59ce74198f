"""The call for decisions: many typed questions about one state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from itemwise.errors import NotFiniteError, RequestError
from itemwise.request.calls import Prepared
from itemwise.request.check import MAX_TEMPERATURE, MIN_TEMPERATURE
from itemwise.request.decide.answers import Answer, Decisions, Reading, answer_of
from itemwise.request.decide.profile import Ask, DecisionProfile
from itemwise.request.decide.questions import Asked, Question, asked
from itemwise.request.decide.read_out import label_logits, label_mass, probabilities, scaled
from itemwise.request.prompts import Names, encode_parts, encode_prompts
from itemwise.request.read_out import Float64Array
from itemwise.request.tools import PromptTools
from itemwise.types import ScoreRequest, ScoreResult

MAX_PROMPTS = 65_536  # of a request: questions times rotations
MAX_LABELS = 1024 * 1024  # of a request, over all its prompts
# Characters of questions, over all prompts: about as many as a request may have tokens for.
MAX_TEXT = 16 * 1024 * 1024


@dataclass(frozen=True)
class Options:
    """How questions are asked and read, all off by default.

    Attributes:
        rotations: in how many cyclic rotations the options of a choice are shown, at most as many
            as it has options; its probabilities are the mean of their logs.
        with_label_mass: whether answers have a `label_mass`, which costs a pass over the
            vocabulary for each question.
        with_readings: whether answers have `readings`.
        case_forms: whether `yes` and `Yes` count as one answer; None for the profile's setting.
        temperature: divides the logits; None for the profile's.
        wording: that the caller relies on; None for any.
    """

    rotations: int = 1
    with_label_mass: bool = False
    with_readings: bool = False
    case_forms: bool | None = None
    temperature: float | None = None
    wording: str | None = None


@dataclass(frozen=True)
class _Read:
    """A question, and the prompts that are read for it.

    Attributes:
        name: of the question, for messages.
        question: what is asked.
        ask: the form that it takes.
        tokens: of the labels and then of their other forms.
        groups: the label that each of these belongs to.
        orders: of its answers, one for each prompt.
    """

    name: str
    question: Asked
    ask: Ask
    tokens: tuple[int, ...]
    groups: tuple[int, ...]
    orders: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class DecideCall:
    """The answers to questions about a state.

    An answer is a function of model, state, question and options alone: each question is an item
    of its own, and where the shared state ends depends on the state alone.

    Attributes:
        state: what the questions are about: text, or a JSON value.
        questions: by the caller's ids, which the model never sees; at least one.
        options: how they are asked and read.
        priority: see `ScoreRequest`.
        timeout_s: see `ScoreRequest`.
        names: what the caller calls state and questions, for messages.
    """

    state: Any
    questions: Mapping[str, Question]
    options: Options = Options()
    priority: int = 0
    timeout_s: float | None = None
    names: Names = Names("state", "questions")

    def prepare(self, tools: PromptTools) -> Prepared[Decisions]:
        """See `Call.prepare`."""
        profile = tools.decisions
        if not isinstance(profile, DecisionProfile):
            raise RequestError("no_profile", f"the model cannot answer questions: {profile}")
        self._check(tools)
        if self.options.wording not in (None, profile.wording.name):
            raise RequestError(
                "unsupported_field",
                f"this format has the wording {self.options.wording}, and the decision profile of "
                f"this model is {profile.name}; ask in another format, as `/v1/systemone`",
            )
        reads = [self._read(profile, name, each) for name, each in self.questions.items()]
        self._check_work(reads, tools.limits.max_items or MAX_PROMPTS)
        items = [
            profile.item(read.ask, read.question, order) for read in reads for order in read.orders
        ]
        # Nothing merges across a delimiter.
        encode = encode_prompts if tools.limits.delimiter is None else encode_parts
        prompts = encode(
            profile.tokenizer,
            profile.shared(self.state, f"`{self.names.shared}`"),
            items,
            max_tokens=tools.limits.max_seq_len - (tools.limits.delimiter is not None),
            names=self.names,
        )
        request = ScoreRequest(
            prompts.query,
            prompts.items,
            tuple(read.tokens for read in reads for _ in read.orders),
            apply_softmax=not self.options.with_label_mass,
            priority=self.priority,
            timeout_s=self.timeout_s,
        )

        def finish(result: ScoreResult) -> Decisions:
            return self._finish(profile, reads, request, result)

        return Prepared(request, finish, items=self.names.items, labels=self.names.items)

    def _check(self, tools: PromptTools) -> None:
        name, number = self.names.items, len(self.questions)
        most = tools.limits.max_items or MAX_PROMPTS
        temperature, rotations = self.options.temperature, self.options.rotations
        if temperature is not None and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            raise RequestError(
                "invalid_temperature",
                f"`temperature` is {temperature:g}, expected {MIN_TEMPERATURE:g} to "
                f"{MAX_TEMPERATURE:g}",
                "temperature",
            )
        if rotations < 1:
            raise RequestError(
                "invalid_request", f"`rotations` is {rotations}, expected 1 or more", "rotations"
            )
        if not number:
            raise RequestError(
                "empty_items", f"`{name}` is empty, expected at least one question", name
            )
        if number > most:
            raise RequestError(
                "too_many_items",
                f"`{name}` has {number} questions, at most {most} are allowed; send several "
                "requests",
                name,
            )

    def _read(self, profile: DecisionProfile, name: str, question: Question) -> _Read:
        where = f"`{self.names.items}`: {name[:100]!r}"
        found = asked(question, where)
        ask, labels = profile.ask(found, where)
        tokens, groups = list(labels.values()), list(range(len(labels)))
        cases = self.options.case_forms
        if profile.case_forms if cases is None else cases:
            for group, label in enumerate(labels):
                if label in ask.labels.cases:
                    tokens.append(ask.labels.cases[label])
                    groups.append(group)
        number, orders = len(labels), 1
        if found.kind == "choice":
            orders = min(self.options.rotations, number)
        starts = [turn * number // orders for turn in range(orders)]
        rotated = tuple(
            tuple((start + place) % number for place in range(number)) for start in starts
        )
        return _Read(name, found, ask, tuple(tokens), tuple(groups), rotated)

    def _check_work(self, reads: Sequence[_Read], max_prompts: int) -> None:
        """Refuses what takes too much time or memory, before it does."""
        num_prompts = num_labels = num_chars = 0
        for read in reads:
            question = read.question
            size = len(question.text) + sum(map(len, (*question.names, *question.details)))
            num_prompts += len(read.orders)
            num_labels += len(read.orders) * len(read.tokens)
            num_chars += len(read.orders) * size
        for number, most, what, code in (
            (num_prompts, max_prompts, "prompts (questions times rotations)", "too_many_items"),
            (num_labels, MAX_LABELS, "labels over all prompts", "too_many_labels"),
            (num_chars, MAX_TEXT, "characters over all prompts", "too_many_tokens"),
        ):
            if number > most:
                name = self.names.items
                raise RequestError(
                    code,
                    f"`{name}` makes {number} {what}, at most {most} are allowed; send several "
                    "requests, or fewer rotations",
                    name,
                )

    def _finish(
        self,
        profile: DecisionProfile,
        reads: Sequence[_Read],
        request: ScoreRequest,
        result: ScoreResult,
    ) -> Decisions:
        assert result.logits is not None
        answers: dict[str, Answer] = {}
        first = 0
        for read in reads:
            places = range(first, first + len(read.orders))
            first = places.stop
            answers[read.name] = self._answer(profile, read, request, result, places)
        return Decisions(answers, result.prompt_tokens, len(request.query), result.cached_tokens)

    def _answer(
        self,
        profile: DecisionProfile,
        read: _Read,
        request: ScoreRequest,
        result: ScoreResult,
        places: range,
    ) -> Answer:
        """The answer to a question, whose prompts are the request's items at `places`."""
        assert result.logits is not None
        question, number = read.question, len(read.question.names)
        logits = [np.asarray(result.logits[place]) for place in places]
        if not all(np.isfinite(row).all() for row in logits):
            raise NotFiniteError(
                f"the model gives no number for the question {read.name[:100]!r} (NaN or "
                "infinity): its arithmetic overflows on this text; leave it out, or use "
                "`--dtype float32`"
            )
        temperature, prior = (
            profile.temperature(question.kind),
            profile.prior(question.kind, number),
        )
        if self.options.temperature is not None:
            temperature = self.options.temperature
        labels = [label_logits(row, read.groups) for row in logits]
        rows = [scaled(row, temperature, prior) for row in labels]
        mass = None
        if self.options.with_label_mass:
            assert result.logsumexps is not None
            sums = [float(result.logsumexps[place]) for place in places]
            masses = [label_mass(row, total) for row, total in zip(logits, sums, strict=True)]
            mass = float(np.mean(masses))
        readings: tuple[Reading, ...] = ()
        if self.options.with_readings:
            pairs = zip(places, read.orders, labels, strict=True)
            readings = tuple(_reading(read, request, *pair) for pair in pairs)
        return answer_of(question, probabilities(rows, read.orders), mass, readings)


def _reading(
    read: _Read, request: ScoreRequest, place: int, order: Sequence[int], logits: Float64Array
) -> Reading:
    """The prompt at a place of the request."""
    shown_at = sorted(range(len(order)), key=order.__getitem__)  # the label of each answer
    return Reading(
        (*request.query.tolist(), *request.items[place].tolist()),
        tuple(read.tokens[label] for label in shown_at),
        tuple(float(logits[label]) for label in shown_at),
    )
