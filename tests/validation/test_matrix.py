"""The matrix over several models, with validations that are played."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from itemwise.errors import CheckpointError, ResultsError
from itemwise.validation import matrix
from itemwise.validation.evaluate import Amount
from itemwise.validation.files import write_json
from itemwise.validation.matrix import COLUMNS, run_matrix
from itemwise.validation.validate import Settings, settings_json
from tests.validation.test_check import BOTH, PARITY


class Played:
    """Stands in for `validate`: writes what it would, and notes the models."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: list[str] = []
        self.all_pass = True
        monkeypatch.setattr(matrix, "validate", self)

    def __call__(self, model: str, settings: Settings, *, folder: Path, **_: Any) -> Any:
        self.models.append(model)
        if model == "bug":
            raise ZeroDivisionError("division by zero")
        if "broken" in model:
            raise CheckpointError("`broken` has no weights\nsecond line")
        speeds = {n: {"speedup_vs_serial_p50": float(n) / 2} for n in ("8", "32")}
        multi_semantic = {"max_abs_diff_jax_multi_vs_torch_multi_semantic": 0.003}
        write_json(folder / "both.json", {**BOTH, "performance": speeds})
        write_json(folder / "parity.json", {**PARITY, **multi_semantic})
        result = {
            "name": folder.name,
            "complete": True,
            "files": {"multi_vs_serial": "both.json", "parity": "parity.json"},
            "checks": {"a": {"pass": True}, "b": {"pass": self.all_pass}},
            "all_pass": self.all_pass,
            "workload": "default",
            "settings": settings_json(settings),
            "environment": {},
        }
        write_json(folder / "validation.json", result)
        return result


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    return Played(monkeypatch)


def test_goes_on_past_a_failing_model_and_says_why(tmp_path: Path, played: Played) -> None:
    found = run_matrix(["a/broken", "b/good"], Settings(), folder=tmp_path)
    assert played.models == ["a/broken", "b/good"]
    assert found["complete"]
    assert not found["all_pass"]
    broken, good = found["rows"]
    assert broken["error"].startswith("`broken` has no weights")
    assert good["same_length_max"] == 0.0
    assert good["multi_vs_torch_multi_semantic"] == 0.003
    assert (good["speedup_8"], good["speedup_32"], good["speedup_128"]) == (4.0, 16.0, None)
    assert json.loads((tmp_path / "matrix.json").read_text()) == found
    lines = (tmp_path / "matrix.md").read_text().splitlines()
    assert f"| {' | '.join(title for _, title in COLUMNS)} |" in lines
    assert (
        r"| broken | - | - | - | - | - | - | - | - | - | failed: \`broken\` has no weights |"
        in lines
    )
    assert any(
        line.startswith("| good | 0.0 | 0.0 | 0.015 | 0.0041 | 0.003 | 4.00x") for line in lines
    )


def test_resumes_and_starts_anew_where_settings_differ(tmp_path: Path, played: Played) -> None:
    run_matrix(["one", "two"], Settings(), folder=tmp_path)
    found = run_matrix(["one", "two", "three"], Settings(), folder=tmp_path)
    assert played.models == ["one", "two", "three"]
    assert [row["model"] for row in found["rows"]] == ["one", "two", "three"]
    run_matrix(["one"], Settings(amount=Amount((32,))), folder=tmp_path)
    run_matrix(["one"], Settings(amount=Amount((32,))), folder=tmp_path, fresh=True)
    assert played.models[3:] == ["one", "one"]


def test_a_model_that_does_not_pass_fails_the_matrix(tmp_path: Path, played: Played) -> None:
    played.all_pass = False
    found = run_matrix(["one"], Settings(), folder=tmp_path)
    assert not found["all_pass"]
    assert found["rows"][0]["verdict"] == "1 of 2 pass"


def test_an_unexpected_failure_does_not_stop_the_others(tmp_path: Path, played: Played) -> None:
    found = run_matrix(["bug", "good"], Settings(), folder=tmp_path)
    assert found["rows"][0]["error"] == "ZeroDivisionError: division by zero"
    assert played.models == ["bug", "good"]


def test_two_models_of_one_name(tmp_path: Path, played: Played) -> None:
    with pytest.raises(ResultsError, match="the same name: m, m"):
        run_matrix(["a/m", "b/m"], Settings(), folder=tmp_path)
    assert played.models == []
