"""From labelled requests to examples, and from a study to a decision profile and to JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from itemwise.calibration.examples import Example
from itemwise.calibration.fit import KindCalibration
from itemwise.calibration.labelled import LabelledRequest
from itemwise.calibration.study import KindStudy, Study, View
from itemwise.errors import LabelledSetError, RequestError
from itemwise.progress import ProgressFn, silent
from itemwise.request.calls import Prepared
from itemwise.request.decide.answers import Decisions
from itemwise.request.decide.call import DecideCall, Options
from itemwise.request.decide.profile import DecisionProfile
from itemwise.request.decide.profile_file import Calibration
from itemwise.request.decide.questions import Question, asked
from itemwise.scorer import Scorer

REQUESTS_TOGETHER = 64  # in shared steps


def read_examples(
    scorer: Scorer, requests: Sequence[LabelledRequest], on_progress: ProgressFn = silent
) -> dict[str, list[Example]]:
    """What the model says to every question without calibration, by type of question.

    Raises:
        LabelledSetError: questions cannot be asked; one message has all of them with their lines.
        NotFiniteError: the model gives NaN or infinity for a question.
    """
    profile = scorer.decision_profile()
    ready = _prepare(scorer, requests)
    found: dict[str, list[Example]] = {}
    for first in range(0, len(ready), REQUESTS_TOGETHER):
        chunk = ready[first : first + REQUESTS_TOGETHER]
        results = scorer.run([prepared.request for _, prepared in chunk])
        for number, ((request, prepared), result) in enumerate(zip(chunk, results, strict=True)):
            for name, answer in prepared.finish(result).answers.items():
                kind, labels = _labels(profile, request.questions[name])
                logits = answer.readings[0].logits
                example = Example(labels, logits, request.answers[name], request.group)
                found.setdefault(kind, []).append(example)
            on_progress("requests", first + number + 1, len(ready))
    return found


def _prepare(
    scorer: Scorer, requests: Sequence[LabelledRequest]
) -> list[tuple[LabelledRequest, Prepared[Decisions]]]:
    """The requests in tokens; all of them, so that problems are found before any is scored."""
    ready, problems = [], []
    for request in requests:
        call = DecideCall(request.state, request.questions, Options(with_readings=True))
        try:
            ready.append((request, scorer.prepare_call(call)))
        except RequestError as error:
            problems.append(f"line {request.line}: {error}")
    if problems:
        raise LabelledSetError(problems)
    return ready


def _labels(profile: DecisionProfile, question: Question) -> tuple[str, tuple[str, ...]]:
    """The type of a question, and the labels of its answers."""
    checked = asked(question, "the question")
    _, labels = profile.ask(checked, "the question")
    return checked.kind, tuple(labels)


def to_profile(
    found: Study, examples: Mapping[str, Sequence[Example]], known: Calibration
) -> Calibration:
    """What a decision profile holds of a study.

    Args:
        found: fitted and tested.
        examples: by type of question. A prior is written for each number of answers that occurs.
        known: what the profile held so far; types that the study has not stay as they are.
    """
    temperature = {kind: t for kind, t in known.temperature.items() if kind not in found.kinds}
    prior = {
        name: p for name, p in known.prior.items() if name.partition("/")[0] not in found.kinds
    }
    for kind, calibration in found.calibrations().items():
        temperature[kind] = calibration.temperature
        for labels in sorted({one.labels for one in examples[kind]}, key=len):
            if len(labels) > 1:
                prior[f"{kind}/{len(labels)}"] = _prior(calibration, labels)
    return replace(known, temperature=temperature, prior=prior)


def _prior(calibration: KindCalibration, labels: Sequence[str]) -> tuple[float, ...]:
    """Probabilities of labels whatever is asked."""
    logs = dict(calibration.log_prior)
    weights = np.exp([logs.get(label, 0.0) for label in labels])
    return tuple((weights / weights.sum()).tolist())


def to_json(found: Study) -> dict[str, Any]:
    """All figures of a study, as JSON values."""
    return {
        "all": {"before": _view(found.before), "after": _view(found.after)},
        "types": {kind: _kind(one) for kind, one in found.kinds.items()},
    }


def _kind(one: KindStudy) -> dict[str, Any]:
    return {
        "fitted": one.num_fitted,
        "temperature": one.calibration.temperature,
        "temperature_error": one.calibration.temperature_error,
        "log_prior": dict(one.calibration.log_prior),
        "used": one.is_better,
        "before": _view(one.before),
        "after": _view(one.after),
    }


def _view(view: View) -> dict[str, Any]:
    return {**asdict(view.measures), "bins": [asdict(each) for each in view.bins]}
