"""The A/B benchmarks end to end, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from itemwise.cli.app import app


def bench(*arguments: str, **environment: str) -> str:
    done = CliRunner().invoke(app, ["bench", *arguments], env=environment, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
def test_ab_runs_print_and_write_the_same_scores(
    make_checkpoint: Callable[[str], Path], tmp_path: Path, cache_folder: str
) -> None:
    model = str(make_checkpoint("tiny-qwen2"))
    common = ["--query-tokens", "40", "--items", "6", "--item-tokens", "5", "--dtype", "float32"]
    common += [
        "--compilation-cache-dir",
        cache_folder,
        "--kv-cache-bytes",
        "2000000",
        "--skip-self-check",
    ]
    runs = {"MULTI_ITEM_BENCH_WARMUP_RUNS": "0", "MULTI_ITEM_BENCH_TIMED_RUNS": "1"}
    reports = {}
    for name, mask in (("packed", "dense"), ("packed", "segment"), ("prefill-extend", "dense")):
        out = tmp_path / f"{name}-{mask}.json"
        text = bench(name, model, *common, "--json", str(out), **runs, MULTI_ITEM_MASK_IMPL=mask)
        assert "items/s" in text
        for published in ("52", "105", "518"):
            assert published in text
        report = reports[name, mask] = json.loads(out.read_text())
        assert report["warmup_s"] == []
        assert len(report["timed_s"]) == 1
        assert report["items_per_s"] == pytest.approx(6 / report["total_s"])
        assert report["peak_rss_bytes"] > 1 << 20
    masks = [report["compiled_programs"] for report in reports.values()]
    assert [[one["mask"] for one in made] for made in masks] == [["dense"], ["segment"], []]
    scores = [np.array(report["first_scores"]) for report in reports.values()]
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=1e-4)
