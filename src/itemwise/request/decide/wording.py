"""How a state and a question are worded. A wording is data; `word` puts a question into one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from string import digits
from typing import Any

from itemwise.request.decide.questions import Asked, Kind, as_text

_PLACEHOLDER = re.compile(r"\{(?:label|name|description)\}")


@dataclass(frozen=True)
class Form:
    """How one type of question is worded; lines that are empty are left out.

    Attributes:
        question: with `{question}`.
        bare: in its place if the question has no text.
        option: a line for an answer, with `{label}` and `{name}`.
        described: the same for one with a `{description}`.
        end: the last line, which says how to answer.
        labels: what the answers are called. Empty for letters, and two of them beyond 26 answers.
        otherwise: used instead where a label is no single token; None if that is an error.
    """

    question: str
    bare: str
    option: str
    described: str
    end: str
    labels: tuple[str, ...] = ()
    otherwise: Form | None = None


@dataclass(frozen=True)
class Wording:
    """How states and questions are worded.

    Attributes:
        name: of the wording.
        state: with `{state}`; what all questions share.
        yes_no: for questions of that type.
        choice: for questions of that type.
        score: for questions of that type.
        system: a system message, or empty.
        empty_state: in place of an empty state.
        indent: of JSON values in the state; None for compact ones.
        transcripts: whether a list of messages becomes lines `role: content`.
    """

    name: str
    state: str
    yes_no: Form
    choice: Form
    score: Form
    system: str = ""
    empty_state: str = ""
    indent: int | None = None
    transcripts: bool = False

    def form(self, kind: Kind) -> Form:
        """That of a type of question."""
        return {"yes_no": self.yes_no, "choice": self.choice, "score": self.score}[kind]

    def state_text(self, state: Any, where: str = "`state`") -> str:
        """What all questions share; `where` is the caller's name for it."""
        if self.transcripts and _is_transcript(state):
            text = "\n".join(f"{each['role']}: {each['content']}" for each in state)
        else:
            text = as_text(state, where, self.indent)
        return self.state.replace("{state}", text or self.empty_state)


def word(form: Form, question: Asked, labels: Sequence[str], order: Sequence[int]) -> str:
    """A question as text, up to the form's last line and without it.

    Args:
        form: of the question's type.
        question: what is asked.
        labels: of the places at which answers are shown.
        order: which answer is shown at each place.
    """
    lines = [form.question.replace("{question}", question.text) if question.text else form.bare]
    for label, place in zip(labels, order, strict=True):
        name, detail = question.names[place], question.details[place]
        parts = {"{label}": label, "{name}": name, "{description}": detail}
        line = form.described if detail else form.option
        lines.append(_PLACEHOLDER.sub(partial(_part, parts), line))
    return "".join(f"{line}\n" for line in lines if line)


def _part(parts: dict[str, str], placeholder: re.Match[str]) -> str:
    return parts[placeholder[0]]


def _is_transcript(state: Any) -> bool:
    """Whether a state is a list of messages, with roles and contents that are texts."""
    return (
        isinstance(state, list)
        and bool(state)
        and all(
            isinstance(each, dict)
            and isinstance(each.get("role"), str)
            and isinstance(each.get("content"), str)
            for each in state
        )
    )


# Source: SGLang's `serving_decisions.py`, prompt format 1.
SGLANG = Wording(
    "sglang-1",
    "{state}\n\n",
    yes_no=Form(
        "Is the following true? {question}",
        "Is the following true?",
        "",
        "{label}: {description}",
        "Answer with yes or no only.",
        ("yes", "no"),
    ),
    choice=Form(
        "Question: {question}",
        "",
        "{label}: {name}",
        "{label}: {name} - {description}",
        "Answer with the letter of one option only.",
    ),
    score=Form(
        "Question: {question}",
        "",
        "",
        "{label}: {description}",
        "Answer with the number of one level only.",
        tuple(digits),
    ),
)
_LETTER = "Answer with the letter only."
_LEVELS = "Pick the level that applies (the levels are ordered):"
# Source: the package anyjev 0.3.0, `readout.py` and `state.py`. Its questions have no descriptions
# of options; lines for those are our own.
ANYJEV = Wording(
    "anyjev",
    "State:\n{state}\n\n",
    yes_no=Form(
        "Question: {question}",
        "",
        "",
        "{label}: {description}",
        "Answer Yes or No.",
        ("Yes", "No"),
    ),
    choice=Form(
        "Question: {question}\nOptions:",
        "Options:",
        "{label}. {name}",
        "{label}. {name}: {description}",
        _LETTER,
    ),
    score=Form(
        "Question: {question}\n" + _LEVELS,
        _LEVELS,
        "",
        "{label}. {description}",
        "Answer with the number only.",
        tuple(map(str, range(1, 11))),
        otherwise=Form(
            "Question: {question}\n" + _LEVELS, _LEVELS, "", "{label}. {description}", _LETTER
        ),
    ),
    system=(
        "You are a decision function. You will be given a state and one question. Reply with the "
        "answer label only: no words, no punctuation, no explanation."
    ),
    empty_state="(empty)",
    indent=2,
    transcripts=True,
)
WORDINGS = {wording.name: wording for wording in (SGLANG, ANYJEV)}
