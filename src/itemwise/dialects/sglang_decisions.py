"""SGLang's `POST /v1/decisions`: an input and a list of typed questions about it.

Source: SGLang's `serving_decisions.py` and its protocol, prompt format 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from itemwise.dialects.base import Dialect, Exchange, parse
from itemwise.dialects.decide import (
    Content,
    OwnFields,
    OwnUsage,
    Temperature,
    model_of,
    own_usage,
)
from itemwise.errors import RequestError
from itemwise.request.decide.answers import Answer, ChoiceAnswer, Decisions, YesNoAnswer
from itemwise.request.decide.call import DecideCall
from itemwise.request.decide.questions import MAX_LEVELS, Choice, Question, Rating, YesNo
from itemwise.request.decide.wording import SGLANG
from itemwise.request.prompts import Names

_STRICT = ConfigDict(extra="forbid")


class DecisionOption(BaseModel):
    """An option of a choice."""

    model_config = _STRICT
    name: str
    description: Content | None = None


class ChoiceQuestion(BaseModel):
    """Which one is it?"""

    model_config = _STRICT
    id: str = Field(min_length=1)
    type: Literal["choice"]
    question: Content
    options: list[DecisionOption] = Field(min_length=2, max_length=26)

    def asked(self) -> Question:
        """The question, whatever its format."""
        if len({option.name for option in self.options}) < len(self.options):
            raise RequestError(
                "invalid_question",
                f"`questions`: {self.id[:100]!r} has two options of one name, expected different "
                "ones",
                "questions",
            )
        return Choice({option.name: option.description for option in self.options}, self.question)


class ScoreQuestion(BaseModel):
    """How much is it?"""

    model_config = _STRICT
    id: str = Field(min_length=1)
    type: Literal["score"]
    question: Content
    levels: list[Content] = Field(min_length=2, max_length=MAX_LEVELS)

    def asked(self) -> Question:
        """The question, whatever its format."""
        return Rating(self.levels, self.question)


class YesNoQuestion(BaseModel):
    """Is it true?"""

    model_config = _STRICT
    id: str = Field(min_length=1)
    type: Literal["yes_no"]
    question: Content
    yes: Content | None = None
    no: Content | None = None

    def asked(self) -> Question:
        """The question, whatever its format."""
        return YesNo(self.question, self.yes, self.no)


AnyQuestion = Annotated[ChoiceQuestion | ScoreQuestion | YesNoQuestion, Field(discriminator="type")]


class SglangDecisionsBody(OwnFields):
    """Body of `POST /v1/decisions` with an `id` for each question."""

    model_config = _STRICT
    model: Any = Field(None, description="Name of the model; optional.")
    input: Content = Field(description="What the questions are about.")
    questions: list[AnyQuestion] = Field(min_length=1)
    temperature: Temperature | None = Field(
        None, description="Divides the logits; by default as the model's decision profile says."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Only to turn thinking off, which it is."
    )
    prompt_format_version: Literal[1] | None = None
    return_prompt_token_ids: bool = Field(
        False, description="Also give the tokens that were scored, to send them to /v1/score."
    )


class SglangAnswer(BaseModel):
    """The answer to a question."""

    type: Literal["choice", "score", "yes_no"]
    probabilities: dict[str, float]
    label_mass: float = Field(description="Share of the labels in the whole vocabulary.")
    choice: str | None = None
    score: float | None = None
    prompt_token_ids: list[int] | None = None
    label_token_ids: list[int] | None = None


class SglangDecisionsAnswer(BaseModel):
    """Answer of `POST /v1/decisions` to questions with an `id`."""

    object: Literal["decisions"]
    model: str
    prompt_format_version: int
    answers: dict[str, SglangAnswer]
    usage: dict[str, Any]
    x_usage: OwnUsage | None = Field(None, description="With `x_usage`.")


def _read(body: Mapping[str, Any]) -> Exchange[Decisions]:
    if body.get("images"):
        raise RequestError(
            "unsupported_field",
            "`images` are not read by this server; leave them out, and describe them in the input",
            "images",
        )
    fields = parse(SglangDecisionsBody, {name: v for name, v in body.items() if name != "images"})
    for name, value in fields.chat_template_kwargs.items():
        if name not in ("enable_thinking", "thinking") or value is not False:
            raise RequestError(
                "unsupported_field",
                f"`chat_template_kwargs` has {name[:100]!r}, expected only `enable_thinking` or "
                "`thinking`, and false",
                "chat_template_kwargs",
            )
    questions = {each.id: each.asked() for each in fields.questions}
    if len(questions) < len(fields.questions):
        raise RequestError(
            "invalid_question",
            "`questions` has an `id` twice, expected different ones",
            "questions",
        )
    options = replace(
        fields.options(),
        with_label_mass=True,
        with_readings=fields.return_prompt_token_ids,
        temperature=fields.temperature,
        wording=SGLANG.name,
    )
    names = Names("input", "questions")
    call = DecideCall(fields.input, questions, options, fields.priority, fields.timeout_s, names)

    def answer(found: Decisions, model: str) -> dict[str, Any]:
        pairs = zip(fields.questions, found.answers.values(), strict=True)
        return {
            "object": "decisions",
            "model": model,
            "prompt_format_version": 1,
            "answers": {question.id: _answer(each, question.type) for question, each in pairs},
            "usage": {
                "prompt_tokens": found.prompt_tokens,
                "total_tokens": found.prompt_tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": {"cached_tokens": found.cached_tokens},
            },
            **own_usage(fields, found),
        }

    return Exchange(call, answer, model_of(body))


def _answer(answer: Answer, kind: str) -> dict[str, Any]:
    own: dict[str, Any] = {}
    if isinstance(answer, YesNoAnswer):
        probabilities: Mapping[str, float] = dict(
            zip(("yes", "no"), answer.probabilities, strict=True)
        )
    elif isinstance(answer, ChoiceAnswer):
        probabilities, own = answer.probabilities, {"choice": answer.choice}
    else:
        probabilities = {str(level): p for level, p in enumerate(answer.probabilities)}
        own = {"score": answer.score}
    if answer.readings:
        own["prompt_token_ids"] = answer.readings[0].token_ids
        own["label_token_ids"] = answer.readings[0].label_ids
    return {
        "type": kind,
        "probabilities": probabilities,
        "label_mass": answer.label_mass,
        **own,
    }


def _takes(body: Mapping[str, Any]) -> bool:
    questions = body.get("questions")
    first = questions[0] if isinstance(questions, list) and questions else None
    return isinstance(first, dict) and ("id" in first or "question" in first)


DIALECT = Dialect(
    paths=("/v1/decisions",),
    summary="Answers typed questions about one input, as SGLang does.",
    body=SglangDecisionsBody,
    answers=SglangDecisionsAnswer,
    read=_read,
    takes=_takes,
)
