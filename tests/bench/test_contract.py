"""The contract benchmark on a tiny model: figures for each way, and ways that agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from itemwise import checkpoint
from itemwise.bench.contract import WAYS, Job, Measured, _differences, run_contract, workload
from itemwise.config import ModelConfig
from itemwise.errors import CheckpointError, ConfigError, ItemwiseError
from itemwise.models.decoder import describe_weights

ENGINE: dict[str, Any] = {
    "page_tokens": 32,
    "step_lanes": 2,
    "kv_cache_bytes": 1 << 20,
    "skip_self_check": True,
    "compilation_cache_dir": "",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = checkpoint.model_dict("tiny-qwen3", vocab_size=2000)
    path = tmp_path_factory.mktemp("contract") / "model"
    specs = describe_weights(ModelConfig.from_hf(config))
    checkpoint.write_random(path, config, specs, seed=0)
    return path


@pytest.mark.slow
def test_every_way_is_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    out = tmp_path / "new" / "contract.json"
    report = run_contract(
        str(folder), counts=(3, 6), query_tokens=40, item_tokens=5, out_json=out, **ENGINE
    )
    assert json.loads(out.read_text())["versions"] == report["versions"]
    assert list(report["ways"]) == list(WAYS)
    for way in report["ways"].values():
        assert set(way["items_per_s"]) == {3, 6}
        assert min(way["items_per_s"].values()) > 0
        assert way["peak_rss_bytes"] > 1 << 20
    ours = report["ways"]["itemwise"]
    assert ours["first_request_s"] > 0
    assert ours["warm_request_s"] > 0
    assert 0 < ours["details"]["page_bytes"] <= 1 << 20
    assert len(report["ways"]["torch-serial"]["scores"]) == 2
    # transformers in bfloat16 itself is up to 0.033 off float32 on this model, over 64 items.
    assert max(report["max_probability_difference"].values()) < 0.05
    printed = capsys.readouterr().out
    assert all(way in printed for way in WAYS)
    assert "the rest" in printed


def test_a_way_that_fails_is_named(folder: Path) -> None:
    with pytest.raises(ItemwiseError, match="`itemwise` failed with exit status 1"):
        run_contract(str(folder), ways=["itemwise"], query_tokens=40, no_such_setting=1)


def test_wrong_arguments_are_named_together(folder: Path) -> None:
    with pytest.raises(ConfigError, match="`ways` is 'onnx'.*`counts`.*`item_tokens` is 0"):
        run_contract(str(folder), ways=["onnx"], counts=(4, 4), item_tokens=0)
    with pytest.raises(CheckpointError, match="does not exist"):
        run_contract(str(folder / "nowhere"))


def test_smaller_requests_hold_the_same_items(folder: Path) -> None:
    few, many = (Job("itemwise", str(folder), counts, 30, 5, 2) for counts in ((4,), (4, 9)))
    query, items = workload(few)
    assert (query, items) == (workload(many)[0], workload(many)[1][:4])
    assert len(query) == 30
    assert {len(item) for item in items} == {5}


def test_a_way_that_disagrees_is_seen() -> None:
    ours = Measured("itemwise", "bfloat16", {2: 1.0}, [[0.5, 0.5], [0.9, 0.1]], 1.0)
    other = Measured("torch-serial", "float32", {2: 1.0}, [[0.3, 0.7]], 1.0)
    assert _differences([ours, other]) == {"torch-serial": pytest.approx(0.2)}
    assert _differences([other]) == {}
