"""The prepared session for a GPU runs on a processor, every stage with a tiny model."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_session.py"


def session(out: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Its exit status and figures."""
    command = [sys.executable, str(SCRIPT), "--rehearse", "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads((out / "gpu-session.json").read_text())


@pytest.mark.slow
def test_every_stage_runs(tmp_path: Path) -> None:
    status, figures = session(tmp_path, "--budget-s", "900")
    assert {name: stage["status"] for name, stage in figures.items()} == dict.fromkeys(
        figures, "ok"
    )
    assert status == 0
    assert list(figures) == [
        "ceilings",
        "exactness",
        "speed",
        "compare",
        "small-steps",
        "attention",
        "sweep",
        "arrivals",
        "larger-model",
        "parity",
    ]
    assert all(rate > 0 for rate in figures["ceilings"]["tflops"].values())
    exact = figures["exactness"]
    assert set(exact["requests_with_other_bits"].values()) == {0}
    assert exact["planted_leak_is_seen"]
    assert exact["processes_agree"]
    trace = figures["speed"]["trace_of_three_contracts"]
    assert 0 < trace["busy_milliseconds"] <= trace["milliseconds"]
    assert all(one["items_per_s"] > 0 for one in figures["sweep"]["variants"].values())
    assert figures["arrivals"]["exact"]
    as_it_is = figures["small-steps"]["as it is"]
    assert as_it_is["sizes"]
    assert as_it_is["with_other_bits"] == 0 == len(as_it_is["failures_of_the_self_check"])
    differences = figures["parity"]["max_probability_difference"]
    assert differences["itemwise float32"] < 1e-5
    # More where the processor's level keeps activations in float32, never less than PyTorch.
    assert differences["itemwise bfloat16"] < 2 * differences["transformers bfloat16"]


def test_what_was_measured_outlives_the_end_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("gpu_session", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_session", script)
    spec.loader.exec_module(script)

    def endless(session: Any) -> None:
        session.save({"first": 1})
        raise subprocess.TimeoutExpired("stage", 1)

    def in_this_process(command: list[str], **_: Any) -> None:
        script.run_stage(command[3], tmp_path, tmp_path / script.RESULTS, True)

    monkeypatch.setattr(script, "STAGES", {"endless": script.Stage(endless, 1)})
    monkeypatch.setattr(subprocess, "run", in_this_process)
    assert not script.run_stages(["endless"], tmp_path, 100, True)
    (figures,) = json.loads((tmp_path / script.RESULTS).read_text()).values()
    assert figures["first"] == 1
    assert figures["status"] == "stopped at its limit"
