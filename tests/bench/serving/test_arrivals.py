"""Random arrivals at rising rates, through the scheduler."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itemwise.bench.serving import arrivals
from itemwise.bench.serving.arrivals import request_of, run_arrivals
from itemwise.bench.serving.traffic import Sample, Workload
from itemwise.errors import ConfigError
from tests.conftest import SMALL

LOAD: dict[str, Any] = {"num_items": 3, "item_tokens": 4, "query_tokens": 20, "shared": 0.25}


def run(folder: Path, out: Path, **settings: Any) -> tuple[bool, dict[str, Any]]:
    chosen = {"rate": 20.0, "p99_ms": 1e4, "seconds": 0.5, "check": 1, **settings}
    fine = run_arrivals(str(folder), workload=LOAD, out_json=out, **chosen, **SMALL)
    return fine, json.loads(out.read_text())


def test_rates_rise_until_the_bound_is_passed(
    make_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arrivals, "GROWTH", 20.0)
    monkeypatch.setattr(arrivals, "MAX_REQUESTS", 300)
    fine, report = run(make_checkpoint("tiny-qwen3"), tmp_path / "out.json")
    assert fine
    first, second = report["runs"]
    assert (first["offered_per_s"], second["offered_per_s"]) == (20.0, 400.0)
    assert first["requests"] == 10
    assert second["requests"] == 200
    assert second["codes"] == {"ok": 200}
    assert report["best"] == second
    fine, report = run(make_checkpoint("tiny-qwen3"), tmp_path / "out.json", p99_ms=1e-3)
    assert fine
    assert len(report["runs"]) == 1
    assert report["best"] is None


def test_wrong_bits_end_it(
    make_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = arrivals._sample

    def off(*arguments: Any) -> Sample:
        sample = right(*arguments)
        sample.scores[0][0] = np.nextafter(sample.scores[0][0], 1)
        return sample

    monkeypatch.setattr(arrivals, "_sample", off)
    fine, report = run(make_checkpoint("tiny-qwen3"), tmp_path / "out.json")
    assert not fine
    assert report["runs"][0]["wrong"] == 1


def test_a_quarter_shares_its_query() -> None:
    workload = Workload(vocab_size=100, **LOAD)
    queries = [request_of(workload, number).query.tobytes() for number in range(40)]
    assert len(set(queries)) == 31


def test_out_of_bounds(make_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    for settings in ({"rate": 0.0}, {"seconds": 0.0}, {"rate": 1e6, "seconds": 1.0}):
        with pytest.raises(ConfigError, match="`rate` is"):
            run(make_checkpoint("tiny-qwen3"), tmp_path / "out.json", **settings)
