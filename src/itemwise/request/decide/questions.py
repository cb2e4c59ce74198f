"""The three types of questions, and how JSON values become text of a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from itemwise.errors import RequestError
from itemwise.types import TokenLists

Kind = Literal["yes_no", "choice", "score"]
Text: TypeAlias = str | Mapping[str, Any] | Sequence[Any] | None
KINDS: tuple[Kind, ...] = ("yes_no", "choice", "score")
MAX_OPTIONS = 255
MAX_LEVELS = 10
MAX_DEPTH = 100  # of a JSON value


@dataclass(frozen=True)
class YesNo:
    """Is it true? One with neither text nor descriptions asks nothing.

    Attributes:
        question: what may be true: text, or a JSON value.
        yes: what it means if it is true.
        no: what it means if it is not.
    """

    question: Text = None
    yes: Text = None
    no: Text = None


@dataclass(frozen=True)
class Choice:
    """Which one is it?

    Attributes:
        options: names of 1 to 255 options, with or without descriptions.
        question: text, or a JSON value.
    """

    options: Mapping[str, Text] | Sequence[str]
    question: Text = None


@dataclass(frozen=True)
class Rating:
    """How much is it?

    Attributes:
        levels: descriptions of 1 to 10 levels, from level 0 on.
        question: text, or a JSON value.
    """

    levels: Sequence[Text]
    question: Text = None


Question: TypeAlias = YesNo | Choice | Rating


@dataclass(frozen=True)
class Asked:
    """A checked question, as every wording sees it.

    Attributes:
        kind: type of the question.
        text: what is asked, or empty.
        names: of the answers: `yes` and `no`, options, or levels from `0` on.
        details: their descriptions, or empty.
    """

    kind: Kind
    text: str
    names: tuple[str, ...]
    details: tuple[str, ...]


def asked(question: Question, where: str) -> Asked:
    """A question in texts.

    Args:
        question: of any type.
        where: the caller's name for it, for messages.

    Raises:
        RequestError: it has too many or too few answers, asks nothing, or has values that are no
            text (`invalid_question`).
    """
    kind, names, details = _answers(question, where)
    found = Asked(
        kind,
        _unless_blank(question.question, f"{where}: the question"),
        names,
        tuple(
            _unless_blank(detail, f"{where}: the description of {name[:100]!r}")
            for name, detail in zip(names, details, strict=True)
        ),
    )
    if kind == "yes_no" and not (found.text or any(found.details)):
        raise _invalid(where, "asks nothing; give it a text, or say what its answers mean")
    if kind == "score" and not all(found.details):
        raise _invalid(where, f"level {found.details.index('')} is empty; describe every level")
    return found


def _answers(question: Question, where: str) -> tuple[Kind, tuple[str, ...], Sequence[Text]]:
    if isinstance(question, YesNo):
        return "yes_no", ("yes", "no"), (question.yes, question.no)
    if isinstance(question, Rating):
        levels = question.levels
        if isinstance(levels, str) or not 1 <= len(levels) <= MAX_LEVELS:
            raise _invalid(where, f"has {len(levels)} levels, expected 1 to {MAX_LEVELS}")
        return "score", tuple(map(str, range(len(levels)))), levels
    options = question.options
    names = tuple(options)
    if isinstance(options, str) or not 1 <= len(names) <= MAX_OPTIONS:
        raise _invalid(where, f"has {len(names)} options, expected 1 to {MAX_OPTIONS}")
    if len(set(names)) < len(names) or not all(isinstance(n, str) and n for n in names):
        raise _invalid(where, "has options that are equal or empty, expected different texts")
    if isinstance(options, Mapping):
        return "choice", names, tuple(options.values())
    return "choice", names, (None,) * len(names)


def as_text(value: Any, where: str, indent: int | None = None) -> str:
    """A text as it is; a JSON value as JSON, compact unless `indent` is given; None as no text.

    Raises:
        RequestError: it is no JSON value, or is nested too deep (`invalid_question`).
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool | int | float) or _is_deeper(value, MAX_DEPTH):
        got = "a number" if not isinstance(value, bool) else "true or false"
        if not isinstance(value, bool | int | float):
            got = f"nested more than {MAX_DEPTH} deep"
        raise _invalid(where, f"is {got}, expected text, an object or an array")
    separators = (",", ":") if indent is None else None
    try:
        return json.dumps(
            value,
            ensure_ascii=False,
            allow_nan=False,
            separators=separators,
            indent=indent,
            default=_plain,
        )
    except (TypeError, ValueError) as error:
        raise _invalid(where, f"is no JSON value ({error})") from None


def _unless_blank(value: Text, where: str) -> str:
    """The text, or none if there is nothing in it: blank text, an empty object or array."""
    if not (value.strip() if isinstance(value, str) else value):
        return ""
    return as_text(value, where)


def _is_deeper(value: Any, most: int) -> bool:
    """Whether a JSON value is nested more than `most` deep."""
    level = [value]
    for _ in range(most):
        level = [
            part
            for each in level
            if isinstance(each, dict | list | tuple)
            for part in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def _plain(value: Any) -> Any:
    """Values that are no JSON types: how large bodies hold lists of numbers, and mappings."""
    if isinstance(value, TokenLists):
        return [row.tolist() for row in value]
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")


def _invalid(where: str, what: str) -> RequestError:
    param = where.partition("`")[2].partition("`")[0]
    return RequestError("invalid_question", f"{where} {what}", param or None)
