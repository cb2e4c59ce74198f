"""What a wire format is made of. No HTTP here: files of requests use the same formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from itemwise.request.calls import Call

T = TypeVar("T")


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
        call: what is scored.
        answer: the body of the answer, from the call's result and the served model's name. Arrays
            of NumPy in it become lists.
        model: name of the model that the client wants, not yet checked; None for any.
    """

    call: Call[T]
    answer: Callable[[T, str], Any]
    model: Any = None


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
    """

    paths: tuple[str, ...]
    summary: str
    body: type[BaseModel]
    answers: type[BaseModel]
    read: Callable[[Mapping[str, Any]], Exchange[Any]]
    takes: Callable[[Mapping[str, Any]], bool] | None = None
    error: Callable[[Fault], dict[str, Any]] = common_error
    errors: type[BaseModel] = ErrorBody
