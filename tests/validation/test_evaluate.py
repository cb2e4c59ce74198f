"""`evaluate` over real HTTP: the runbook's keys, planted leaks, lost and refusing servers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from itemwise.errors import ConfigError, EndpointError, RequestRefusedError
from itemwise.validation.client import ScoreClient
from itemwise.validation.evaluate import Amount, evaluate
from itemwise.validation.files import Json
from itemwise.validation.workloads import DEFAULT
from tests.validation.planted import (
    SMALL,
    PlantedScorer,
    measure,
    planted_server,
    scripted_server,
    truth,
)

MUTATION_KEYS = {
    "mutated_index",
    "mutated_item_ids",
    "scores",
    "unchanged_item_abs_diffs",
    "max_abs_diff_unchanged",
    "mean_abs_diff_unchanged",
}


def assert_common(results: Json, mode: str) -> None:
    assert {"url", "model"} <= set(results)
    assert (results["mode"], results["complete"], results["error"]) == (mode, True, None)
    assert (results["labels"], results["delimiter"]) == ([9834, 902], 151643)
    isolation = results["isolation"]
    assert {"query_ids", "item_ids", "base_scores"} <= set(isolation)
    for name in ("same_length_mutation", "changed_length_mutation"):
        assert set(isolation[name]) >= MUTATION_KEYS
        assert isolation[name]["max_abs_diff_unchanged"] == 0.0
        assert len(isolation[name]["unchanged_item_abs_diffs"]) == 4
    assert isolation["same_length_mutation"]["mutated_item_ids"][0] == 1097
    for count, rounds in (("1", 2), ("32", 2)):
        speed = results["performance"][count]
        assert len(speed["latencies_sec"]) == rounds
        assert speed["items_per_sec_p50"] == pytest.approx(int(count) / speed["p50_sec"])
        assert speed["p50_sec"] <= speed["p95_sec"]


def test_multi_has_the_runbooks_keys_and_every_probe_holds() -> None:
    results = measure("multi", amount=Amount((1, 32), rounds=2, sweep="quick"))
    assert_common(results, "multi")
    assert results["server_dtype"] == "float32"
    assert results["notes"] == []
    probes = {name: probe["pass"] for name, probe in results["probes"].items()}
    names = ("order", "removed", "added", "duplicates", "repeated", "chunk_sizes")
    assert probes == dict.fromkeys(names, True)
    assert set(results["probes"]["chunk_sizes"]["cases"]) == {
        f"chunk size {size}" for size in (0, 1, 2, 32)
    }
    assert results["negative_control"]["detects_leak"]
    assert results["sweeps"]["pass"] is True
    assert {case["num_items"] for case in results["sweeps"]["cases"]} >= {1, 8, 32}


def test_serial_has_the_runbooks_keys() -> None:
    results = measure("serial", amount=Amount((1, 32), rounds=2))
    assert_common(results, "serial")
    alignment = results["semantic_alignment"]
    assert alignment["query_plus_delimiter_ids"] == [*DEFAULT.query, 151643]
    assert len(alignment["base_scores_query_plus_delimiter"]) == 5


def test_a_leak_is_seen() -> None:
    results = measure("multi", "leak")
    isolation = results["isolation"]
    assert 0 < isolation["same_length_mutation"]["max_abs_diff_unchanged"] < 0.001
    assert 0 < isolation["changed_length_mutation"]["max_abs_diff_unchanged"] < 0.001
    failed = {name for name, probe in results["probes"].items() if probe["pass"] is False}
    assert failed == {"removed", "added", "duplicates", "chunk_sizes"}


def test_dependence_on_the_place_is_seen_by_the_probes_that_move_items() -> None:
    results = measure("multi", "order")
    assert results["isolation"]["same_length_mutation"]["max_abs_diff_unchanged"] == 0.0
    failed = {name for name, probe in results["probes"].items() if probe["pass"] is False}
    assert failed == {"order", "removed", "added", "duplicates"}


def test_counts_that_the_server_refuses_are_noted_and_passed_over() -> None:
    amount = Amount((200, 1), rounds=1, warmup=0, sweep="full")
    results = measure("multi", amount=amount)
    assert results["complete"]
    assert set(results["performance"]) == {"1"}
    assert "200" in results["performance_refused"]
    sizes = {c["num_items"]: c for c in results["sweeps"]["cases"] if c["varied"] == "num_items"}
    assert "refused" in sizes[512]
    assert sizes[64]["max_abs_diff_alone"] == 0.0
    lengths = {c["query_tokens"] for c in results["sweeps"]["cases"]}
    assert max(lengths) == 4000


def test_a_server_that_dies_midway_leaves_what_was_measured(tmp_path: Path) -> None:
    def die_later(number: int, body: Any) -> tuple[int, Any] | None:
        if number > 12:
            return None
        rows = [truth(body["query"], item, body["label_token_ids"]) for item in body["items"]]
        return 200, {"scores": rows}

    output, start = tmp_path / "new" / "multi.json", time.monotonic()
    with (
        scripted_server(die_later) as url,
        ScoreClient(url, timeout_s=5) as client,
        pytest.raises(EndpointError, match="was lost during a request|cannot be reached"),
    ):
        evaluate(client, "multi", amount=SMALL, output=output)
    assert time.monotonic() - start < 10
    left = json.loads(output.read_text())
    assert left["complete"] is False
    assert left["error"]
    assert left["stage"].startswith("probe")
    assert left["isolation"]["changed_length_mutation"]["max_abs_diff_unchanged"] == 0.0
    assert left["probes"]["order"]["pass"] is True
    assert [path.name for path in output.parent.iterdir()] == ["multi.json"]


def test_a_vocabulary_too_small_names_the_flag() -> None:
    scorer = PlantedScorer(999, vocab_size=1000)
    with (
        planted_server(scorer) as url,
        ScoreClient(url) as client,
        pytest.raises(RequestRefusedError, match="--workload demo or --workload FILE"),
    ):
        evaluate(client, "multi", amount=SMALL)


def test_a_server_with_another_delimiter_is_noted() -> None:
    with planted_server(PlantedScorer(None)) as url, ScoreClient(url) as client:
        results = evaluate(client, "multi", amount=SMALL)
    (note,) = results["notes"]
    assert "with --multi-item-scoring-delimiter 151643" in note


def test_the_api_key_is_sent() -> None:
    with planted_server(PlantedScorer(151643), api_key="secret") as url:
        with ScoreClient(url, api_key="secret") as client:
            assert evaluate(client, "multi", amount=SMALL)["server_dtype"] == "float32"
        with ScoreClient(url) as client, pytest.raises(EndpointError, match="--api-key"):
            evaluate(client, "multi", amount=SMALL)


def test_amounts_are_checked_together() -> None:
    with pytest.raises(ConfigError, match="`item_counts` is .*`rounds` is 0.*`warmup` is -1"):
        Amount((0,), 0, -1)
