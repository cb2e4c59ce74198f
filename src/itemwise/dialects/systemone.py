"""TypeSafe's System One: a state and a map of typed questions about it.

Sources: the packages typesafe-sdk 0.7.5 and jevcompat 0.1.1, which has a specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from itemwise.dialects.base import Dialect, Exchange, Fault, parse
from itemwise.dialects.decide import (
    Content,
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
)

_STRICT = ConfigDict(extra="forbid")  # a misspelt field would change what is asked


class NoulCriteria(BaseModel):
    """What makes a statement true or false."""

    model_config = _STRICT
    true: Content | None = None
    false: Content | None = None


class NoulQuestion(BaseModel):
    """Is it true?"""

    model_config = _STRICT
    type: Literal["noul"]
    instructions: Content | None = None
    criteria: NoulCriteria | None = None

    def question(self) -> Question:
        """The question, whatever its format."""
        criteria = self.criteria or NoulCriteria()
        return YesNo(self.instructions, criteria.true, criteria.false)


class ChoiceQuestion(BaseModel):
    """Which one is it?"""

    model_config = _STRICT
    type: Literal["choice"]
    instructions: Content | None = None
    criteria: dict[str, Content | None] = Field(
        min_length=1, max_length=MAX_OPTIONS, description="Options and their descriptions."
    )

    def question(self) -> Question:
        """The question, whatever its format."""
        return Choice(self.criteria, self.instructions)


class ScoreQuestion(BaseModel):
    """How much is it?"""

    model_config = _STRICT
    type: Literal["score"]
    instructions: Content | None = None
    criteria: list[Content] = Field(
        min_length=1, max_length=MAX_LEVELS, description="Descriptions of the levels, from 0 on."
    )

    def question(self) -> Question:
        """The question, whatever its format."""
        return Rating(self.criteria, self.instructions)


AnyQuestion = Annotated[NoulQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]


class SystemOneBody(OwnFields):
    """Body of `POST /v1/systemone`. Fields not named are ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "state": "I was charged twice for my March invoice.",
                    "questions": {
                        "refund": {
                            "type": "noul",
                            "instructions": "Does the customer want money back?",
                        },
                        "team": {
                            "type": "choice",
                            "instructions": "Which team should handle this?",
                            "criteria": {"Billing": "Payments, refunds", "Technical": None},
                        },
                    },
                }
            ]
        }
    )

    model: Any = Field(None, description="Name of the model; `jev-latest` is this one, too.")
    state: Content = Field(description="What the questions are about.")
    questions: dict[str, AnyQuestion] = Field(
        min_length=1, description="By ids of your own, which the model never sees."
    )


class NoulResult(OwnAnswer):
    """Whether it is true."""

    type: Literal["noul"]
    noul: float = Field(description="The probability that it is.")


class ChoiceResult(OwnAnswer):
    """Which one it is."""

    type: Literal["choice"]
    choice: str = Field(description="The most probable option.")
    probabilities: dict[str, float]
    confidence: float


class ScoreResult(OwnAnswer):
    """How much it is."""

    type: Literal["score"]
    score: float = Field(description="The expected level.")
    legend: dict[str, Any] = Field(description="The levels as they were described.")
    probabilities: dict[str, float]
    confidence: float


class SystemOneUsage(BaseModel):
    """Tokens of a request."""

    input_tokens: int = Field(description="Tokens of the request; what is shared counts once.")
    output_tokens: int = Field(description="Always 0: nothing is generated.")


class SystemOneAnswer(BaseModel):
    """Answer of `POST /v1/systemone`."""

    model: str
    answers: dict[str, NoulResult | ChoiceResult | ScoreResult]
    usage: SystemOneUsage
    x_usage: OwnUsage | None = Field(None, description="With `x_usage`.")


class SystemOneError(BaseModel):
    """Body of an error."""

    detail: Any = Field(
        description="Of an invalid body a list of `loc`, `msg`, `type`; else an object with "
        "`error_type` and `message`."
    )
    message: str


def read(body: Mapping[str, Any]) -> Exchange[Decisions]:
    """What a body asks for."""
    if body.get("assets"):
        raise RequestError(
            "unsupported_field",
            "`assets` has images, which this server does not read; describe them in the state",
            "assets",
        )
    fields = parse(SystemOneBody, body)
    call = DecideCall(
        fields.state,
        {name: each.question() for name, each in fields.questions.items()},
        fields.options(),
        fields.priority,
        fields.timeout_s,
    )

    def answer(found: Decisions, model: str) -> dict[str, Any]:
        return {
            "model": model,
            "answers": {
                name: _answer(each, fields.questions[name]) for name, each in found.answers.items()
            },
            "usage": {"input_tokens": found.prompt_tokens, "output_tokens": 0},
            **own_usage(fields, found),
        }

    return Exchange(call, answer, model_of(body))


def _answer(answer: Answer, question: AnyQuestion) -> dict[str, Any]:
    own = own_answer(answer)
    if isinstance(answer, YesNoAnswer):
        return {"type": "noul", "noul": answer.probability, **own}
    if isinstance(answer, ChoiceAnswer):
        return {
            "type": "choice",
            "choice": answer.choice,
            "probabilities": answer.probabilities,
            "confidence": answer.confidence,
            **own,
        }
    assert isinstance(question, ScoreQuestion)
    return {
        "type": "score",
        "score": answer.score,
        "legend": {str(level): text for level, text in enumerate(question.criteria)},
        "probabilities": {str(level): p for level, p in enumerate(answer.probabilities)},
        "confidence": answer.confidence,
        **own,
    }


def _status(fault: Fault) -> int:
    """422 for bodies at fault, as FastAPI has it, and 404 for a model that is not here."""
    if fault.code == "model_not_found":
        return 404
    return 422 if fault.status == 400 else fault.status


def _error(fault: Fault) -> dict[str, Any]:
    detail: Any = {"error_type": fault.type, "message": fault.message}
    if _status(fault) == 422:
        place = ["body", *([fault.param] if fault.param else [])]
        detail = [{"loc": place, "msg": fault.message, "type": fault.code}]
    return {"detail": detail, "message": fault.message}


DIALECT = Dialect(
    paths=("/v1/systemone", "/v1/decisions"),
    summary="Answers typed questions about one state, as TypeSafe's System One does.",
    body=SystemOneBody,
    answers=SystemOneAnswer,
    read=read,
    takes=lambda body: "state" in body or isinstance(body.get("questions"), dict),
    error=_error,
    errors=SystemOneError,
    status=_status,
)
