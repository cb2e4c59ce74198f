"""Decision profiles: how a checkpoint is asked typed questions, and how its answers are read.

A built-in wording is chosen by the checkpoint: SGLang's through its chat template, AnyJev's for
Tacit, a plain one without a chat template. `decision_profile.json` in its folder, or the file that
`--decision-profile` names, changes what it has fields for:

    {
      "wording": "sglang-1",
      "chat": true,
      "case_forms": false,
      "temperature": {"yes_no": 1.4, "choice": 1.1},
      "prior": {"choice/3": [0.5, 0.3, 0.2]}
    }

`wording` is the name of a built-in one or an object with the fields of `Wording` and `Form`.
`temperature` and `prior` are what `itemwise calibrate` writes: by type of question, and by type and
number of answers the probability of each label whatever is asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from itemwise.errors import CheckpointError, RequestError
from itemwise.request.chat import ChatTemplate, Frame
from itemwise.request.decide.labels import Labels, find_labels
from itemwise.request.decide.profile_file import (
    PROFILE_FILE,
    Calibration,
    ProfileFile,
    read_profile,
)
from itemwise.request.decide.questions import KINDS, Asked, Kind
from itemwise.request.decide.wording import ANYJEV, SGLANG, Form, Wording, word
from itemwise.request.profiles import names_of
from itemwise.request.prompts import Prompt, Segment
from itemwise.request.tokenizer import Tokenizer


@dataclass(frozen=True)
class Ask:
    """A form at work: its labels, and what stands before the answer."""

    form: Form
    labels: Labels
    tail: Prompt


@dataclass(frozen=True)
class DecisionProfile:
    """How a checkpoint is asked and read.

    Attributes:
        name: of the profile.
        why: how it was chosen.
        wording: of states and questions.
        frame: what stands around the message.
        tokenizer: of the model; puts nothing before a prompt that a chat template begins.
        asks: by type of question, its form; a second one takes the place of the first for
            questions whose labels are no tokens there.
        case_forms: whether `yes` and `Yes` count as one answer.
        calibration: what was fitted.
    """

    name: str
    why: str
    wording: Wording
    frame: Frame
    tokenizer: Tokenizer
    asks: Mapping[Kind, tuple[Ask, ...]]
    case_forms: bool = False
    calibration: Calibration = Calibration()

    def shared(self, state: Any, where: str = "`state`") -> Prompt:
        """What all questions about a state share; `where` is the caller's name for it."""
        text = self.wording.state_text(state, where)
        return Segment(self.frame.head, special=True), Segment(
            text.lstrip() if self.frame.strips else text
        )

    def ask(self, question: Asked, where: str) -> tuple[Ask, dict[str, int]]:
        """The form for a question, and its labels with their tokens.

        Raises:
            RequestError: there are too few labels, or one is not a token (`label_not_one_token`).
        """
        number = len(question.names)
        problem = ""
        for ask in self.asks[question.kind]:
            labels = ask.labels.of(number)
            missing = [text for text, token in labels.items() if token is None]
            if len(labels) < number:
                problem = problem or (
                    f"{where} has {number} answers, and the tokenizer has labels of one token for "
                    f"{max(len(ask.labels.tokens), len(ask.labels.pairs))}; ask about fewer"
                )
            elif missing:
                problem = problem or (
                    f"{where} needs the label {missing[0]!r}, which is not one token of its own "
                    "after the prompt; use a model with another tokenizer, or a decision profile "
                    "with other labels"
                )
            else:
                return ask, {text: token for text, token in labels.items() if token is not None}
        raise RequestError("label_not_one_token", problem, "questions")

    def item(self, ask: Ask, question: Asked, order: Sequence[int]) -> Prompt:
        """The part of the prompt for a question, its answers shown in an order."""
        labels = list(ask.labels.of(len(order)))
        return Segment(word(ask.form, question, labels, order)), *ask.tail

    def temperature(self, kind: Kind) -> float:
        """What divides the logits of a type of question."""
        return self.calibration.temperature.get(kind, 1.0)

    def prior(self, kind: Kind, number: int) -> tuple[float, ...] | None:
        """The probability of each label, whatever is asked; None if nothing is known."""
        return self.calibration.prior.get(f"{kind}/{number}")

    def info(self) -> dict[str, Any]:
        """JSON values for `/v1/models` and `/server_info`."""
        return {
            "name": self.name,
            "why": self.why,
            "wording": self.wording.name,
            "case_forms": self.case_forms,
            "temperature": dict(self.calibration.temperature),
            "priors": sorted(self.calibration.prior),
        }


def find_decision_profile(
    model: str,
    folder: Path,
    num_head_labels: int | None,
    tokenizer: Tokenizer | None,
    file: Path | None = None,
) -> DecisionProfile | str:
    """The decision profile of a model folder; or the reason why it cannot decide.

    Args:
        model: path or Hub id that the user gave.
        folder: where the model lies.
        num_head_labels: labels of its classification head; None if it has none.
        tokenizer: its tokenizer.
        file: a profile to use instead of the folder's own.

    Raises:
        CheckpointError: the file is not a decision profile.
    """
    path = folder / PROFILE_FILE if file is None else file
    given = read_profile(path) if file is not None or path.exists() else ProfileFile()
    if tokenizer is None:
        return "it has no tokenizer.json"
    if num_head_labels is not None:
        return "it has a classification head in place of a vocabulary"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    wording, why = _wording(given, names_of(model, folder, config))
    try:
        chat = ChatTemplate.from_folder(folder) if given.chat else None
        frame = _plain_frame(wording) if chat is None else chat.frame(wording.system)
    except CheckpointError as error:
        return f'{error}; a {PROFILE_FILE} with "chat": false asks without one'
    if chat is None:
        name, why = f"{wording.name}-plain", f"{why}, without a chat template"
        profile = make_profile(name, why, wording, frame, tokenizer, spaces=(" ", ""))
    else:
        profile = make_profile(wording.name, why, wording, frame, tokenizer.as_written())
    return replace(profile, case_forms=given.case_forms, calibration=given.calibration)


def make_profile(
    name: str,
    why: str,
    wording: Wording,
    frame: Frame,
    tokenizer: Tokenizer,
    *,
    spaces: tuple[str, ...] = ("",),
) -> DecisionProfile:
    """A profile of a wording, whose labels may stand after any of `spaces`."""
    asks = {kind: _asks(tokenizer, frame, wording.form(kind), spaces) for kind in KINDS}
    return DecisionProfile(name, why, wording, frame, tokenizer, asks)


def _wording(given: ProfileFile, names: tuple[str, ...]) -> tuple[Wording, str]:
    """The wording, and how it was chosen."""
    if given.wording is not None:
        return given.wording, "its decision profile says so"
    if name := next((name for name in names if "tacit" in name), None):
        return ANYJEV, f"it is named {name!r}"
    return SGLANG, "it has no wording of its own"


def _plain_frame(wording: Wording) -> Frame:
    """Without a chat template, a label after a space goes on the text."""
    system = f"{wording.system}\n\n" if wording.system else ""
    return Frame(system, "\nAnswer:", strips=False)


def _asks(
    tokenizer: Tokenizer, frame: Frame, form: Form, spaces: tuple[str, ...]
) -> tuple[Ask, ...]:
    """A form and the one that takes its place, at work."""
    found: list[Ask] = []
    each: Form | None = form
    while each is not None:
        tail = (Segment(each.end), Segment(frame.tail, special=True))
        found.append(Ask(each, find_labels(tokenizer, tail, each, spaces), tail))
        each = each.otherwise
    return tuple(found)
