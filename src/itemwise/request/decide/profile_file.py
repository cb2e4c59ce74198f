"""The file of a decision profile; `request/decide/profile.py` says what its fields do."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from itemwise.errors import CheckpointError
from itemwise.request.decide.questions import KINDS, MAX_LEVELS, MAX_OPTIONS
from itemwise.request.decide.wording import WORDINGS, Form, Wording

PROFILE_FILE = "decision_profile.json"
_MOST = {"yes_no": 2, "choice": MAX_OPTIONS, "score": MAX_LEVELS}


@dataclass(frozen=True)
class Calibration:
    """What was fitted to labelled answers.

    Attributes:
        temperature: by type of question, what divides the logits; 1 if it is not there.
        prior: by `TYPE/NUMBER` of answers, the probability of each label whatever is asked.
    """

    temperature: Mapping[str, float] = field(default_factory=dict)
    prior: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ProfileFile:
    """The fields of a decision profile.

    Attributes:
        wording: None to choose by the checkpoint.
        chat: whether to use the checkpoint's chat template, if it has one.
        case_forms: whether `yes` and `Yes` count as one answer.
        calibration: what was fitted.
    """

    wording: Wording | None = None
    chat: bool = True
    case_forms: bool = False
    calibration: Calibration = Calibration()


def read_profile(path: Path) -> ProfileFile:
    """The decision profile that a JSON file holds.

    Raises:
        CheckpointError: the file cannot be read, or is not one; one message has all problems.
    """
    raw = _read(path)
    if problems := list(_problems(raw)):
        raise CheckpointError(f"`{path}` is not a decision profile: {'; '.join(problems)}")
    prior = {name: tuple(map(float, values)) for name, values in raw.get("prior", {}).items()}
    return ProfileFile(
        _wording(raw["wording"]) if "wording" in raw else None,
        raw.get("chat", True),
        raw.get("case_forms", False),
        Calibration(raw.get("temperature", {}), prior),
    )


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Writes what was fitted into a decision profile; other fields of it stay.

    Raises:
        CheckpointError: there is a file, and it is not a decision profile.
    """
    raw = _read(path) if path.exists() else {}
    raw["temperature"] = dict(calibration.temperature)
    raw["prior"] = {name: list(values) for name, values in calibration.prior.items()}
    if problems := list(_problems(raw)):
        raise CheckpointError(f"`{path}` is not a decision profile: {'; '.join(problems)}")
    path.write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"`{path}` cannot be read as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"`{path}` is a JSON {type(raw).__name__}, expected an object")
    return raw


def _wording(value: Any) -> Wording:
    if isinstance(value, str):
        return WORDINGS[value]
    forms = {kind: _form(value[kind]) for kind in KINDS}
    return Wording(**{**value, **forms})


def _form(value: dict[str, Any]) -> Form:
    labels = tuple(value.get("labels", ()))
    otherwise = _form(value["otherwise"]) if value.get("otherwise") else None
    return Form(**{**value, "labels": labels, "otherwise": otherwise})


def _problems(raw: dict[str, Any]) -> Iterator[str]:
    """The reasons why `raw` is not a profile."""
    known = ("wording", "chat", "case_forms", "temperature", "prior")
    for name in raw:
        if name not in known:
            yield f"`{name}` is not a field of it, expected {', '.join(known)}"
    wording = raw.get("wording", "sglang-1")
    if isinstance(wording, dict):
        yield from _object_problems(Wording, wording, "wording")
        for kind in KINDS:
            if isinstance(wording.get(kind), dict):
                yield from _form_problems(wording[kind], f"wording.{kind}", kind)
    elif wording not in WORDINGS:
        yield f"`wording` is {wording!r}, expected {' or '.join(WORDINGS)}, or an object"
    for name in ("chat", "case_forms"):
        if not isinstance(raw.get(name, False), bool):
            yield f"`{name}` is {raw[name]!r}, expected true or false"
    yield from _calibration_problems(raw)


def _object_problems(kind: type[Any], value: dict[str, Any], where: str) -> Iterator[str]:
    """Fields of a dataclass that are missing, unknown, or of another type."""
    types = {
        "str": str,
        "bool": bool,
        "int | None": int | None,
        "Form": dict,
        "Form | None": dict | None,
        "tuple[str, ...]": list,
    }
    for each in fields(kind):
        if each.name not in value:
            if each.default is MISSING:
                yield f"`{where}.{each.name}` is missing"
        elif not isinstance(value[each.name], types[str(each.type)]):
            yield f"`{where}.{each.name}` is {value[each.name]!r}, expected {each.type}"
    unknown = value.keys() - {each.name for each in fields(kind)}
    yield from (f"`{where}.{name}` is not a field of it" for name in sorted(unknown))


def _form_problems(value: dict[str, Any], where: str, kind: str) -> Iterator[str]:
    yield from _object_problems(Form, value, where)
    labels = value.get("labels") or []
    if isinstance(labels, list) and labels:
        if not all(isinstance(text, str) and text for text in labels):
            yield f"`{where}.labels` is not a list of texts"
        elif len(set(labels)) < len(labels):
            yield f"`{where}.labels` has a text twice"
    if kind == "yes_no" and len(labels) != 2:
        yield f"`{where}.labels` has {len(labels)} texts, expected one for yes and one for no"
    if not value.get("end"):
        yield f"`{where}.end` is empty, expected a line that says how to answer"
    if isinstance(value.get("otherwise"), dict):
        yield from _form_problems(value["otherwise"], f"{where}.otherwise", kind)


def _calibration_problems(raw: dict[str, Any]) -> Iterator[str]:
    temperature, prior = raw.get("temperature", {}), raw.get("prior", {})
    for name, value in (("temperature", temperature), ("prior", prior)):
        if not isinstance(value, dict):
            yield f"`{name}` is {value!r}, expected an object"
            return
    for kind, value in temperature.items():
        if kind not in KINDS or not _is_positive(value):
            yield f"`temperature` has {kind!r}: {value!r}, expected numbers above 0 by type"
    for name, values in prior.items():
        kind, _, number = name.partition("/")
        fits = kind in KINDS and number.isdecimal() and 1 <= int(number) <= _MOST[kind]
        if not fits or not isinstance(values, list) or len(values) != int(number):
            yield f"`prior` has {name!r}: {values!r}, expected TYPE/NUMBER and so many numbers"
        elif not all(map(_is_positive, values)):
            yield f"`prior` has {name!r}: {values!r}, expected probabilities above 0"


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf
