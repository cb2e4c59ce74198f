"""OpenAI's `POST /v1/decisions`: messages, and a list of typed questions about them.

Source: the package openai 3.57.0, `client.decisions.create`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from itemwise.dialects.base import Dialect, Exchange, parse
from itemwise.dialects.decide import (
    OwnAnswer,
    OwnFields,
    OwnUsage,
    model_of,
    own_answer,
    own_usage,
)
from itemwise.errors import RequestError
from itemwise.request.decide.answers import Answer, ChoiceAnswer, Decisions, YesNoAnswer
from itemwise.request.decide.call import DecideCall
from itemwise.request.decide.questions import (
    MAX_LEVELS,
    MAX_OPTIONS,
    Choice,
    Question,
    Rating,
    YesNo,
    as_text,
)
from itemwise.request.prompts import Names

_STRICT = ConfigDict(extra="forbid")
_TEXT_PARTS = ("input_text", "output_text", "text")
MAX_QUESTIONS = 400
Instructions = str | list[dict[str, Any]]
Value = StrictStr | StrictBool


class PredicateQuestion(BaseModel):
    """Is it true?"""

    model_config = _STRICT
    type: Literal["predicate"]
    name: str | None = None
    instructions: Instructions

    def question(self) -> Question:
        """The question, whatever its format."""
        return YesNo(_parts(self.instructions, "questions"))


class ChoiceOption(BaseModel):
    """A value to choose."""

    model_config = _STRICT
    value: Value = Field(description='Text or a boolean; `true` is not `"true"`.')
    description: str | None = None


class ChoiceQuestion(BaseModel):
    """Which one is it?"""

    model_config = _STRICT
    type: Literal["choice"]
    name: str | None = None
    instructions: Instructions
    choices: list[ChoiceOption] = Field(min_length=2, max_length=MAX_OPTIONS)

    def question(self) -> Question:
        """The question, whatever its format."""
        keys = {(type(each.value), each.value) for each in self.choices}
        if len(keys) < len(self.choices):
            raise RequestError(
                "invalid_question",
                "`questions`: a choice has a value twice, expected different ones",
                "questions",
            )
        named = [_option_name(each.value, i, self.choices) for i, each in enumerate(self.choices)]
        details = [each.description for each in self.choices]
        options = dict(zip(named, details, strict=True))
        return Choice(options, _parts(self.instructions, "questions"))


class ScoreLevel(BaseModel):
    """A level of a scale."""

    model_config = _STRICT
    label: str = Field(min_length=1)
    description: str | None = None


class ScoreQuestion(BaseModel):
    """How much is it?"""

    model_config = _STRICT
    type: Literal["score"]
    name: str | None = None
    instructions: Instructions
    levels: list[ScoreLevel] = Field(min_length=2, max_length=MAX_LEVELS)

    def question(self) -> Question:
        """The question, whatever its format."""
        levels = [
            f"{each.label} - {each.description}" if each.description else each.label
            for each in self.levels
        ]
        return Rating(levels, _parts(self.instructions, "questions"))


AnyQuestion = Annotated[
    PredicateQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")
]


class OpenaiDecisionsBody(OwnFields):
    """Body of `POST /v1/decisions`. Fields not named are ignored."""

    model: Any = Field(None, description="Name of the model; optional.")
    input: str | list[dict[str, Any]] = Field(
        description="What the questions are about: text, or messages with text and JSON."
    )
    questions: list[AnyQuestion] = Field(min_length=1, max_length=MAX_QUESTIONS)
    safety_identifier: Any = Field(None, description="Taken, without effect.")
    prompt_cache_key: Any = Field(None, description="Taken, without effect.")
    prompt_cache_options: Any = Field(None, description="Taken, without effect.")


class PredicateResult(OwnAnswer):
    """Whether it is true."""

    type: Literal["predicate"]
    name: str | None
    probability: float


class ChoiceProbability(BaseModel):
    """A value and how probable it is."""

    value: Value
    probability: float


class ChoiceResult(OwnAnswer):
    """Which one it is."""

    type: Literal["choice"]
    name: str | None
    choice: Value
    confidence: float
    probabilities: list[ChoiceProbability]


class ScoreProbability(BaseModel):
    """A level and how probable it is."""

    value: int
    label: str
    probability: float


class ScoreResult(OwnAnswer):
    """How much it is."""

    type: Literal["score"]
    name: str | None
    score: float
    confidence: float
    probabilities: list[ScoreProbability]


class OpenaiDecisionsAnswer(BaseModel):
    """Answer of `POST /v1/decisions`, in the order of the questions."""

    model: str
    answers: list[PredicateResult | ChoiceResult | ScoreResult]
    usage: dict[str, Any]
    x_usage: OwnUsage | None = Field(None, description="With `x_usage`.")


def _read(body: Mapping[str, Any]) -> Exchange[Decisions]:
    fields = parse(OpenaiDecisionsBody, body)
    call = DecideCall(
        _input(fields.input),
        # Names may be equal or absent; answers come in the order of the questions.
        {str(place): each.question() for place, each in enumerate(fields.questions)},
        fields.options(),
        fields.priority,
        fields.timeout_s,
        Names("input", "questions"),
    )

    def answer(found: Decisions, model: str) -> dict[str, Any]:
        pairs = zip(found.answers.values(), fields.questions, strict=True)
        return {
            "model": model,
            "answers": [_answer(each, question) for each, question in pairs],
            "usage": {
                "input_tokens": found.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": found.cached_tokens,
                    "cache_write_tokens": found.shared_tokens - found.cached_tokens,
                },
                "output_tokens": 0,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": found.prompt_tokens,
            },
            **own_usage(fields, found),
        }

    return Exchange(call, answer, model_of(body))


def _input(value: str | list[dict[str, Any]]) -> str:
    """The text of an input; of several messages, each with its role."""
    if isinstance(value, str):
        return value
    texts = [_message(each) for each in value]
    return texts[0][1] if len(texts) == 1 else "\n\n".join(f"{r}: {t}" for r, t in texts)


def _message(item: dict[str, Any]) -> tuple[str, str]:
    """Who says what in an item of the input."""
    kind = item.get("type", "message")
    if kind == "message":
        return str(item.get("role", "user")), _parts(item.get("content"), "input")
    if isinstance(item.get("output"), list):
        return str(kind), _parts(item["output"], "input")
    if kind in ("function_call", "custom_tool_call", "function_call_output"):
        return str(kind), as_text(item, "`input`")
    raise RequestError(
        "unsupported_field",
        f"`input` has an item of type {str(kind)[:40]!r}, expected messages, or calls and their "
        "outputs",
        "input",
    )


def _parts(content: Any, field: str) -> str:
    """The text of a content: text, or a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(
            "invalid_request", f"`{field}` has a content that is neither text nor a list", field
        )
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "refusal" and isinstance(part.get("refusal"), str):
            texts.append(part["refusal"])
        elif kind == "input_json":
            texts.append(as_text(part.get("data"), f"`{field}`: a part"))
        else:
            raise RequestError(
                "unsupported_field",
                f"`{field}` has a part of type {str(kind)[:40]!r}, expected `input_text` or "
                "`input_json`; images are not read by this server",
                field,
            )
    return "\n".join(texts)


def _option_name(value: str | bool, place: int, choices: list[ChoiceOption]) -> str:
    """What the model sees: booleans as JSON has them, in quotes the text that looks like one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    twin = any(isinstance(other.value, bool) for other in choices)
    return f'"{value}"' if twin and value in ("true", "false") else value


def _answer(answer: Answer, question: AnyQuestion) -> dict[str, Any]:
    own = {"type": question.type, "name": question.name, **own_answer(answer)}
    if isinstance(answer, YesNoAnswer):
        return {**own, "probability": answer.probability}
    if isinstance(answer, ChoiceAnswer):
        assert isinstance(question, ChoiceQuestion)
        values = [each.value for each in question.choices]
        pairs = list(zip(values, answer.probabilities.items(), strict=True))
        return {
            **own,
            "choice": next(value for value, (name, _) in pairs if name == answer.choice),
            "confidence": answer.confidence,
            "probabilities": [{"value": value, "probability": p} for value, (_, p) in pairs],
        }
    assert isinstance(question, ScoreQuestion)
    return {
        **own,
        "score": answer.score,
        "confidence": answer.confidence,
        "probabilities": [
            {"value": level, "label": each.label, "probability": p}
            for level, (each, p) in enumerate(
                zip(question.levels, answer.probabilities, strict=True)
            )
        ],
    }


DIALECT = Dialect(
    paths=("/v1/decisions",),
    summary="Answers typed questions about one input, as OpenAI does.",
    body=OpenaiDecisionsBody,
    answers=OpenaiDecisionsAnswer,
    read=_read,
)
