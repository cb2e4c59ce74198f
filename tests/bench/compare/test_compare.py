"""Itemwise beside the ways of PyTorch on a tiny model: figures, and ways that agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itemwise.bench.compare import compare
from itemwise.bench.compare.compare import WAYS, Measured, run_compare
from itemwise.bench.compare.ways import ITEMWISE_WAYS, few_items, first_items
from itemwise.bench.compare.workloads import WORKLOADS
from itemwise.checkpoint.shapes import model_dict
from itemwise.checkpoint.write import write_random
from itemwise.errors import CheckpointError, ConfigError, ItemwiseError
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import describe_weights

VOCAB_SIZE = 2000


def write_model(folder: Path, like: str) -> Path:
    config = model_dict(like, vocab_size=VOCAB_SIZE)
    specs = describe_weights(ModelConfig.from_hf(config))
    write_random(folder, config, specs, seed=0)
    return folder


@pytest.fixture(scope="module")
def engine(cache_folder: str) -> dict[str, Any]:
    return {
        "page_tokens": 32,
        "step_lanes": 2,
        "kv_cache_bytes": 1 << 20,
        "skip_self_check": True,
        "compilation_cache_dir": cache_folder,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("compare") / "model", "tiny-qwen3")


@pytest.mark.parametrize(
    "like",
    [
        "tiny-qwen3",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("tiny-qwen2", "tiny-llama")),
    ],
)
@pytest.mark.usefixtures("one_torch_thread")
def test_ways_of_pytorch_agree(like: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from itemwise.bench.compare.torch_ways import HIDDEN
    from itemwise.validation.reference import load_torch

    model = load_torch(write_model(tmp_path / "model", like), "float32")
    rng = np.random.default_rng(0)
    query = rng.integers(0, VOCAB_SIZE, 37).tolist()
    items = [rng.integers(0, VOCAB_SIZE, n).tolist() for n in (5, 1, 20, 3, *[4] * 90, 33)]
    with torch.inference_mode():
        assert set(HIDDEN) == set(WAYS) - set(ITEMWISE_WAYS)
        truth = HIDDEN["torch-serial"][0](model, query, items)
        for name, (hidden, _) in HIDDEN.items():
            if name == "torch-flex":
                continue  # compiles C++ for a minute; `bench compare` shows how far it differs
            found = hidden(model, query, items)
            torch.testing.assert_close(found, truth, atol=2e-5, rtol=0, msg=name)


@pytest.mark.slow
def test_every_way_is_measured_and_agrees(
    folder: Path, engine: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    out, chart = tmp_path / "new" / "compare.json", tmp_path / "new" / "compare.png"
    ways = ["itemwise", "itemwise-segment", "torch-serial", "torch-cascade"]
    report = run_compare(
        str(folder),
        workloads=["runbook-8", "short"],
        ways=ways,
        rounds=2,
        warmup=0,
        max_items=13,
        out_json=out,
        chart=chart,
        **engine,
    )
    assert json.loads(out.read_text()) == report
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert not report["failed"]
    assert list(report["ways"]) == ways
    assert all(speed > 0 for speed in report["ceilings"].values())
    for part, items in zip(report["workloads"], (8, 13), strict=True):
        assert list(part["ways"]) == ways
        for name, way in part["ways"].items():
            assert way["items"] == items, name
            assert len(way["seconds"]) == 2
            assert way["peak_bytes"] > 1 << 20
            # transformers in bfloat16 itself is up to 0.033 off float32 on this model.
            assert way["max_probability_difference"] < 0.05, name
    printed = capsys.readouterr().out
    assert all(way in printed for way in ways)


def test_a_way_that_fails_is_left_out(folder: Path) -> None:
    with pytest.raises(ItemwiseError, match="no way.*`itemwise` failed with exit status 1"):
        run_compare(str(folder), ways=["itemwise"], no_such_setting=1)


@pytest.mark.slow
def test_a_way_that_fails_in_a_turn_is_named(
    folder: Path,
    engine: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ask = compare.WayProcess.ask

    def die(self: compare.WayProcess, **command: Any) -> dict[str, Any]:
        if command["do"] == "score" and self.name == "itemwise-segment":
            self._process.kill()
        return ask(self, **command)

    monkeypatch.setattr(compare.WayProcess, "ask", die)
    report = run_compare(
        str(folder),
        workloads=["runbook-1"],
        ways=["itemwise-segment", "itemwise"],
        rounds=1,
        warmup=0,
        **engine,
    )
    assert list(report["workloads"][0]["ways"]) == ["itemwise"]
    assert "runbook-1: `itemwise-segment` failed" in report["failed"]["itemwise-segment"]
    assert "left out" in capsys.readouterr().out


def test_wrong_arguments_are_named_together(folder: Path) -> None:
    with pytest.raises(ConfigError, match="`ways` is 'onnx'.*`rounds` is 0.*`max_items` is 0"):
        run_compare(str(folder), ways=["onnx"], rounds=0, max_items=0)
    with pytest.raises(ConfigError, match="`workloads` has huge, expected some of contract"):
        run_compare(str(folder), workloads=["huge"], ways=["itemwise"])
    with pytest.raises(CheckpointError, match="does not exist"):
        run_compare(str(folder / "nowhere"), ways=["itemwise"])


def test_smaller_requests_hold_the_same_items() -> None:
    few, many = (WORKLOADS[name].requests(VOCAB_SIZE)[0] for name in ("contract-64", "contract"))
    assert few.query == many.query
    assert few.items == many.items[:64]
    requests = WORKLOADS["short"].requests(VOCAB_SIZE)
    assert len({tuple(request.query) for request in requests}) == 16
    some = first_items(requests, 13)
    assert [len(request.items) for request in some] == [10, 3]
    assert some[1].query == requests[1].query
    assert first_items(requests, None) == requests


def test_workloads_have_the_lengths_they_say() -> None:
    assert {len(item) for item in WORKLOADS["runbook-8"].requests(9)[0].items} == {5, 6}
    lengths = WORKLOADS["mixed"].item_tokens
    assert (len(lengths), min(lengths) >= 4, max(lengths) <= 200) == (200, True, True)
    assert 20 < sorted(lengths)[100] < 40  # the middle of log-uniform lengths is near sqrt(4 * 200)


def test_useful_work_is_that_of_the_contract() -> None:
    model = ModelConfig.from_hf(model_dict("qwen3-0.6b"))
    # 12,000 tokens through 0.44 billion weights, and 10,000 of them looking at 2000 keys each.
    linear = 2 * 12000 * 28 * (1024 * (2048 + 2 * 1024 + 2048) + 3 * 1024 * 3072)
    seen = 500 * (20 * 2000 + 210) + 2000 * 2001 / 2
    expected = linear + 4 * seen * 16 * 128 * 28
    assert WORKLOADS["contract"].useful_flops(model) == expected
    assert 15e12 < expected < 16.5e12


def test_rate_is_that_of_the_median_turn() -> None:
    one = Measured(seconds=[4.0, 1.0, 2.0], scores=np.zeros((8, 2), np.float32))
    assert one.items_per_s == 4


def test_a_few_items_tell_the_speed_where_all_are_alike() -> None:
    assert few_items(WORKLOADS["contract"], 8192) == 4
    assert few_items(WORKLOADS["long"], 8192) == 2
    assert few_items(WORKLOADS["runbook-128"], 8192) > 128
    assert few_items(WORKLOADS["mixed"], 8192) == 200


def test_batches_take_rows_alike_in_length() -> None:
    pytest.importorskip("torch")
    from itemwise.bench.compare.batching import batches, pad, runs

    rows = [[1] * n for n in (3, 9, 4, 1, 20, 4)]
    found = batches(rows, 9)
    assert found == [[4], [1], [2, 5], [3, 0]]
    tokens, last = pad([rows[3], rows[0]])
    assert tokens.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert last.tolist() == [0, 2]
    assert [len(run) for run in runs(rows, 13)] == [2, 2, 1, 1]
