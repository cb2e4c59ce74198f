"""The whole way with the demo model: labelled set, fit, profile, and answers that use it.

Answers are drawn from the model's own logits at a temperature and a label prior that the
calibration has to find. The model is small and its logits hardly depend on the letters, so the
temperature is low.
"""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itemwise.calibration.calibrate import read_examples, to_profile
from itemwise.calibration.examples import Example
from itemwise.calibration.fit import softmax
from itemwise.calibration.labelled import read_labelled
from itemwise.calibration.study import study
from itemwise.cli.app import main
from itemwise.errors import LabelledSetError
from itemwise.request.decide.call import DecideCall, Options
from itemwise.request.decide.profile_file import PROFILE_FILE, Calibration, read_profile
from itemwise.scorer import Scorer
from tests.calibration.synthetic import draw
from tests.conftest import DEMO_POOL

TICKETS = Path(__file__).parents[2] / "examples" / "decisions" / "tickets.py"
# The demo model's choices are all but constant, which leaves only their prior to find.
TEMPERATURE = {"yes_no": 0.1, "choice": 1.0, "score": 0.1}


def letters(count: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = list(runpy.run_path(str(TICKETS))["tickets"](count))
    for letter in made:
        letter["questions"].pop("product")
        letter["questions"]["mood"]["criteria"] = ["angry", "calm", "glad"]
        letter["answers"] = {"refund": True, "topic": "billing", "mood": 0}
    return made


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def settings(cache_folder: str) -> dict[str, Any]:
    return {
        "kv_cache_bytes": DEMO_POOL,
        "skip_self_check": True,
        "compilation_cache_dir": cache_folder,
    }


@pytest.fixture(scope="module")
def scorer(settings: dict[str, Any]) -> Scorer:
    return Scorer.from_pretrained(**settings)


@pytest.fixture(scope="module")
def labelled(scorer: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose answers are drawn at `TEMPERATURE`, with a prior that makes all as frequent."""
    folder, rng, lines = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0), letters(240)
    requests = read_labelled(write(folder / "plain.jsonl", lines))
    for kind, examples in read_examples(scorer, requests).items():
        logits = np.array([example.logits for example in examples]) / TEMPERATURE[kind]
        for line, row in zip(lines, softmax(logits - logits.mean(axis=0)), strict=True):
            place = int(rng.choice(len(row), p=row))
            if kind == "yes_no":
                line["answers"]["refund"] = place == 0
            elif kind == "choice":
                line["answers"]["topic"] = list(line["questions"]["topic"]["criteria"])[place]
            else:
                line["answers"]["mood"] = place
    return write(folder / "labelled.jsonl", lines)


def run(folder: Path, labelled: Path, settings: dict[str, Any], *more: str) -> int | str | None:
    options = ["--kv-cache-bytes", str(settings["kv_cache_bytes"]), "--skip-self-check"]
    options += ["--compilation-cache-dir", settings["compilation_cache_dir"]]
    options += ["--profile-out", str(folder / PROFILE_FILE), "--json", str(folder / "f.json")]
    options += ["--report", str(folder / "report.html")]
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", str(labelled), *options, *more])
    return ended.value.code


def test_what_was_fitted_is_used(
    tmp_path: Path,
    labelled: Path,
    scorer: Scorer,
    settings: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tmp_path, labelled, settings) == 0
    printed = capsys.readouterr().out
    assert "->" in printed
    assert "itemwise serve --model-path" in printed
    figures = json.loads((tmp_path / "f.json").read_text())
    assert set(figures["types"]) == {"yes_no", "choice", "score"}
    for kind in ("yes_no", "score"):
        one = figures["types"][kind]
        assert one["temperature_error"] < 0.5 * TEMPERATURE[kind]
        assert abs(one["temperature"] - TEMPERATURE[kind]) < 4 * one["temperature_error"]
    for one in figures["types"].values():
        assert one["used"]
        assert one["after"]["log_loss"] < one["before"]["log_loss"]
    assert "<svg" in (tmp_path / "report.html").read_text()

    profile = tmp_path / PROFILE_FILE
    calibration = read_profile(profile).calibration
    assert set(calibration.prior) == {"yes_no/2", "choice/4", "score/3"}
    calibrated = Scorer.from_pretrained(decision_profile=profile, **settings)
    (first, *_) = read_labelled(labelled)
    plain = scorer.run_call(
        DecideCall(first.state, first.questions, Options(with_readings=True))
    ).answers
    answers = calibrated.decide(first.state, first.questions).answers
    logits = np.array(plain["mood"].readings[0].logits)
    expected = np.exp(logits / calibration.temperature["score"])
    expected /= calibration.prior["score/3"]
    found: Any = answers["mood"]
    np.testing.assert_allclose(found.probabilities, expected / expected.sum(), rtol=1e-5)
    before: Any = plain["mood"]
    assert found.probabilities != before.probabilities


@pytest.mark.slow
def test_a_second_fit_is_to_what_the_model_says_by_itself(
    tmp_path: Path, labelled: Path, settings: dict[str, Any]
) -> None:
    figures = []
    for _ in range(2):  # the second time with the profile there
        assert run(tmp_path, labelled, settings) == 0
        figures.append(json.loads((tmp_path / "f.json").read_text())["types"])
    assert figures[0] == figures[1]


@pytest.mark.slow
def test_the_profile_that_was_asked_with_is_kept(
    tmp_path: Path, labelled: Path, settings: dict[str, Any]
) -> None:
    base = tmp_path / "base.json"
    base.write_text(json.dumps({"wording": "anyjev", "temperature": {"score": 9.0}}))
    folder = tmp_path / "out"
    folder.mkdir()
    assert run(folder, labelled, settings, "--decision-profile", str(base)) in (0, 1)
    if (folder / PROFILE_FILE).exists():
        written = json.loads((folder / PROFILE_FILE).read_text())
        assert written["wording"] == "anyjev"
        assert written["temperature"].get("score") != 9.0
    assert json.loads(base.read_text())["temperature"] == {"score": 9.0}


def test_questions_that_cannot_be_asked_are_named(scorer: Scorer, tmp_path: Path) -> None:
    lines = letters(4)
    for line in (lines[1], lines[3]):
        line["state"] = "word " * 20000
    requests = read_labelled(write(tmp_path / "set.jsonl", lines))
    with pytest.raises(LabelledSetError) as told:
        read_examples(scorer, requests)
    assert [problem.partition(":")[0] for problem in told.value.problems] == ["line 2", "line 4"]


def test_bad_sets_are_refused_before_a_model_is_loaded(
    tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = letters(2)
    lines[1]["answers"]["topic"] = "weather"
    bad = write(tmp_path / "bad.jsonl", lines)
    assert run(tmp_path, bad, settings, "--model-path", "no/such-model") == 2
    assert "line 2: `answers.topic`" in capsys.readouterr().err
    assert not (tmp_path / PROFILE_FILE).exists()


@pytest.mark.slow
def test_nothing_better_writes_no_profile(
    tmp_path: Path,
    labelled: Path,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from itemwise.calibration.study import KindStudy

    monkeypatch.setattr(KindStudy, "is_better", property(lambda self: False))
    assert run(tmp_path, labelled, settings) == 1
    assert "Wrote no decision profile" in capsys.readouterr().out
    assert not (tmp_path / PROFILE_FILE).exists()
    assert (tmp_path / "report.html").exists()


def test_priors_are_of_the_numbers_that_occur_and_others_stay() -> None:
    examples = {"choice": draw(900, 2.5, (0.6, 0.1, -0.3, -0.4), least=3)}
    known = Calibration(
        {"choice": 9.0, "score": 2.0}, {"choice/8": (0.1,) * 8, "score/2": (0.4, 0.6)}
    )
    found = to_profile(study(examples), examples, known)
    assert set(found.prior) == {"choice/3", "choice/4", "score/2"}
    assert found.temperature["score"] == 2.0
    assert found.temperature["choice"] == pytest.approx(2.5, rel=0.3)
    for values in found.prior.values():
        assert sum(values) == pytest.approx(1)
    three, four = found.prior["choice/3"], found.prior["choice/4"]
    assert three[0] / three[1] == pytest.approx(four[0] / four[1])  # one prior of the letters
    single: Example = dataclasses.replace(
        examples["choice"][0], labels=("A",), logits=(0.0,), answer=0
    )
    assert (
        "choice/1"
        not in to_profile(
            study({"choice": [*examples["choice"], single]}),
            {"choice": [*examples["choice"], single]},
            Calibration(),
        ).prior
    )


def test_letters_are_the_same_every_time() -> None:
    module = runpy.run_path(str(TICKETS))
    made = list(module["tickets"](300))
    assert made[:10] == list(module["tickets"](10))
    refunds = sum(letter["answers"]["refund"] for letter in made)
    assert 120 < refunds < 180
    for letter in made:
        question = letter["questions"]["topic"]
        assert letter["answers"]["topic"] in question["criteria"]
        assert letter["answers"]["product"] in letter["state"]
    assert len({letter["state"] for letter in made}) > 280


def test_serve_takes_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def from_pretrained(model: str, **settings: Any) -> None:
        given.update(settings)

    def serve(config: Any, load: Any) -> int:
        load()
        return 0

    monkeypatch.setattr(Scorer, "from_pretrained", from_pretrained)
    monkeypatch.setattr("itemwise.server.process.serve", serve)
    profile = tmp_path / PROFILE_FILE
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--model-path", "somewhere", "--decision-profile", str(profile)])
    assert ended.value.code == 0
    assert given["decision_profile"] == profile
