"""What questions about one state cost, with the demo model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itemwise.bench.compare.decisions import Case, make_questions, make_state, run_decisions
from itemwise.config import DEMO_MODEL
from itemwise.errors import ConfigError
from itemwise.scorer import Scorer
from tests.conftest import DEMO_POOL


@pytest.fixture(scope="module")
def settings(cache_folder: str) -> dict[str, Any]:
    return {
        "kv_cache_bytes": DEMO_POOL,
        "skip_self_check": True,
        "compilation_cache_dir": cache_folder,
    }


def test_figures_of_every_case(
    tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "decisions.json"
    fine = run_decisions(
        DEMO_MODEL,
        state_tokens=(100,),
        questions=(1, 4),
        ways=(),
        rounds=1,
        most_alone=2,
        out_json=file,
        **settings,
    )
    assert fine
    assert "same" in capsys.readouterr().out
    one, four = json.loads(file.read_text())["cases"]
    assert one["together"]["tokens"] == one["alone"]["tokens"]
    assert four["state_tokens"] == one["state_tokens"] >= 100
    # The state once, and each question once.
    assert four["together"]["tokens"] == four["state_tokens"] + four["question_tokens"]
    assert four["alone"]["questions_asked"] == 2
    assert four["alone"]["tokens"] > four["together"]["tokens"] + 2 * four["state_tokens"]


def test_answers_that_differ_are_seen(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    ask_alone = Case.ask_alone

    def other(self: Case, count: int) -> dict[str, Any]:
        found = ask_alone(self, count)
        return {**found, "answers": dict.fromkeys(found["answers"], None)}

    monkeypatch.setattr(Case, "ask_alone", other)
    assert not run_decisions(
        DEMO_MODEL, state_tokens=(50,), questions=(2,), ways=(), rounds=1, **settings
    )


def test_states_have_the_length_that_is_asked_for(settings: dict[str, Any]) -> None:
    scorer = Scorer.from_pretrained(**settings)
    for size in (50, 300):
        case = Case(scorer, make_state(scorer, size), make_questions(3))
        assert size <= case.state_tokens < size + 80
        assert case.reference().shape == (3, len(case.labels))


def test_unknown_ways_are_refused() -> None:
    with pytest.raises(ConfigError, match="`ways` has itemwise, expected some of torch-serial"):
        run_decisions(DEMO_MODEL, ways=("itemwise",))


@pytest.mark.slow
@pytest.mark.usefixtures("one_torch_thread")
def test_pytorch_computes_the_same_probabilities(tmp_path: Path, settings: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "decisions.json"
    run_decisions(
        DEMO_MODEL,
        state_tokens=(60,),
        questions=(5,),
        ways=("torch-serial", "torch-expanded"),
        rounds=1,
        most_alone=3,
        out_json=file,
        **settings,
    )
    (case,) = json.loads(file.read_text())["cases"]
    assert case["ways"]["torch-serial"]["questions_asked"] == 3
    assert case["ways"]["torch-expanded"]["questions_asked"] == 5
    differences = [way["max_probability_difference"] for way in case["ways"].values()]
    assert np.max(differences) < 0.05  # PyTorch may take bfloat16
