r"""Labelled sets: JSON lines of requests in System One's format, with their answers.

    {"id": "t-17", "state": "The parcel came late, and broken.",
     "questions": {"angry": {"type": "noul", "instructions": "The customer is angry."},
                   "topic": {"type": "choice", "criteria": {"delivery": null, "price": null}}},
     "answers": {"angry": true, "topic": "delivery"}}

An answer is true or false, the name of an option, or the number of a level; or an answer object as
the server writes it, of which `noul` (0 or 1), `choice` or `score` counts. Questions without an
answer are not asked. `id` is optional. Requests of the same id, or of none and the same state, are
in the same half.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from itemwise.dialects import systemone
from itemwise.errors import LabelledSetError, RequestError
from itemwise.request.decide.call import DecideCall
from itemwise.request.decide.questions import Choice, Question, YesNo, as_text, asked
from itemwise.request.json_body import why_no_json

MAX_SHOWN_CHARACTERS = 60  # of a value that a message shows


@dataclass(frozen=True)
class LabelledRequest:
    """A state and questions whose answers are known.

    Attributes:
        line: its number in the file, from 1 on.
        group: requests of one group are in the same half.
        state: text or a JSON value.
        questions: by name.
        answers: by the same names, the place of the right answer: for yes and no 0 and 1.
    """

    line: int
    group: str
    state: Any
    questions: Mapping[str, Question]
    answers: Mapping[str, int]


class _Bad(Exception):
    """What is wrong with a line."""


def read_labelled(path: Path) -> list[LabelledRequest]:
    """The requests of a labelled set; blank lines do not count.

    Raises:
        LabelledSetError: the file cannot be read, is empty, or has bad lines; one message has all
            problems with their lines.
    """
    found, problems = [], []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if not line.strip():
                    continue
                try:
                    found.append(_request(line, number))
                except (_Bad, RequestError) as error:
                    problems.append(f"`{path}` line {number}: {error}")
    except OSError as error:
        problems = [f"`{path}` cannot be read: {error.strerror}"]
    if not found and not problems:
        problems.append(f"`{path}` is empty, expected a labelled request on each line")
    if problems:
        raise LabelledSetError(problems)
    return found


def _request(line: bytes, number: int) -> LabelledRequest:
    try:
        body = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _Bad(f"is not JSON ({why_no_json(line, error)})") from None
    if not isinstance(body, dict):
        raise _Bad(f"is {_shown(body)}, expected an object")
    answers, questions = body.get("answers"), body.get("questions")
    if not isinstance(answers, dict) or not answers:
        raise _Bad(f"`answers` is {_shown(answers)}, expected an object that is not empty")
    if isinstance(questions, dict):
        if lost := answers.keys() - questions.keys():
            raise _Bad(f"`answers.{_cut(min(lost))}` has no question of that name")
        body["questions"] = {name: questions[name] for name in answers}
    call = systemone.read(body).call
    assert isinstance(call, DecideCall)
    places, problems = {}, []
    for name, question in call.questions.items():
        try:
            asked(question, f"`questions.{_cut(name)}`")
            places[name] = _place(question, answers[name], f"`answers.{_cut(name)}`")
        except (_Bad, RequestError) as error:
            problems.append(str(error))
    if problems:
        raise _Bad("; ".join(problems))
    group = _group(body.get("id"), call.state)
    return LabelledRequest(number, group, call.state, call.questions, places)


def _group(name: Any, state: Any) -> str:
    """What decides the half: the id, or else the state."""
    text = as_text(state, "`state`")  # refuses what is nested too deep
    if name is None:
        return f"state {text}"
    if not isinstance(name, str | int):
        raise _Bad(f"`id` is {_shown(name)}, expected text or a whole number")
    return f"id {name}"


def _place(question: Question, answer: Any, where: str) -> int:
    """The place of the right answer among the answers of a question."""
    if isinstance(question, YesNo):
        value = answer.get("noul") if isinstance(answer, dict) else answer
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise _Bad(f"{where} is {_shown(answer)}, expected true or false")
        return 0 if value else 1
    if isinstance(question, Choice):
        options = list(question.options)
        value = answer.get("choice") if isinstance(answer, dict) else answer
        if value not in options:
            shown = _cut(", ".join(map(repr, options)))
            raise _Bad(f"{where} is {_shown(answer)}, which is no option; expected {shown}")
        return options.index(value)
    levels = list(range(len(question.levels)))
    value = answer.get("score") if isinstance(answer, dict) else answer
    if value not in levels or isinstance(value, bool):
        raise _Bad(f"{where} is {_shown(answer)}, which is no level; expected 0 to {levels[-1]}")
    return levels.index(value)


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, dict | list):
        empty = "" if value else "empty "
        return f"an {empty}object" if isinstance(value, dict) else f"a list of {len(value)}"
    return _cut(json.dumps(value, ensure_ascii=False))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "..."
