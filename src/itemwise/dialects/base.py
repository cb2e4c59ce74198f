"""What a wire format is made of. No HTTP here: files of requests use the same formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from itemwise.errors import RequestError
from itemwise.request.calls import Call
from itemwise.types import ScoreResult

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
NOTHING = ScoreResult([], 0)  # of no items
MAX_FAULTS = 5  # that an error names


@dataclass(frozen=True)
class Fault:
    """An error, in the terms that all formats share.

    Attributes:
        status: HTTP status.
        code: stable name of the error.
        type: class of errors, as OpenAI's API names them.
        message: what was received, what was expected, and what to do.
        param: field of the body at fault, or None.
    """

    status: int
    code: str
    type: str
    message: str
    param: str | None = None


@dataclass(frozen=True)
class Exchange(Generic[T]):
    """What a body asks for, and how the result is written.

    Attributes:
        call: what is scored; None if there is nothing, and then the result is `NOTHING`.
        answer: the body of the answer, from the call's result and the served model's name. Arrays
            of NumPy in it become lists.
        model: name of the model that the client wants, not yet checked; None for any.
    """

    call: Call[T] | None
    answer: Callable[[T, str], Any]
    model: Any = None


def parse(model: type[M], body: Mapping[str, Any]) -> M:
    """The body as `model`.

    Raises:
        RequestError: it does not fit (`invalid_request`); the message names every wrong field.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
    places = [".".join(map(str, fault["loc"])) for fault in faults[:MAX_FAULTS]]
    said = [f"`{where}`: {fault['msg']}" for where, fault in zip(places, faults, strict=False)]
    if len(faults) > MAX_FAULTS:
        said.append(f"and {len(faults) - MAX_FAULTS} more")
    param = str(faults[0]["loc"][0]) if faults[0]["loc"] else None
    raise RequestError("invalid_request", "; ".join(said), param)


class ErrorDetail(BaseModel):
    """The error format of OpenAI's API."""

    message: str = Field(description="What was received, what was expected, and what to do.")
    type: str
    param: str | None = Field(description="The request field at fault.")
    code: str = Field(description="Stable name of the error.")


class ErrorBody(BaseModel):
    """Body of an error: the same facts at the top level, as SGLang has them, and in `error`."""

    object: Literal["error"]
    message: str
    type: str
    param: str | None
    code: int = Field(description="The HTTP status.")
    error: ErrorDetail


def common_error(fault: Fault) -> dict[str, Any]:
    """An error as `ErrorBody`, which clients of SGLang and of OpenAI read."""
    facts = {"message": fault.message, "type": fault.type, "param": fault.param}
    return {
        "object": "error",
        **facts,
        "code": fault.status,
        "error": {**facts, "code": fault.code},
    }


@dataclass(frozen=True)
class Dialect:
    """A wire format.

    Attributes:
        paths: where bodies of this format are posted.
        summary: one line on what it is.
        body: schema of its bodies.
        answers: schema of its answers.
        read: what a body, decoded JSON, asks for; raises `RequestError` if it is invalid.
        takes: whether a body is of this format, where several share a path; None for the format
            of all bodies that no other one takes.
        error: the body of an error.
        errors: schema of that.
        status: the HTTP status of an error, where the format has another one than others.
    """

    paths: tuple[str, ...]
    summary: str
    body: type[BaseModel]
    answers: type[BaseModel]
    read: Callable[[Mapping[str, Any]], Exchange[Any]]
    takes: Callable[[Mapping[str, Any]], bool] | None = None
    error: Callable[[Fault], dict[str, Any]] = common_error
    errors: type[BaseModel] = ErrorBody
    status: Callable[[Fault], int] = lambda fault: fault.status
