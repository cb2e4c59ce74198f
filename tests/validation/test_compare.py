from __future__ import annotations

from typing import Any

import pytest

from itemwise.errors import ConfigError, ResultsError
from itemwise.validation.compare import compare_multi_serial, compare_with_torch, parity
from itemwise.validation.evaluate import Mode
from itemwise.validation.files import Json
from tests.validation.planted import measured_once, reference


def measured(mode: Mode) -> Json:
    return measured_once(mode, None)


def test_multi_against_serial_has_the_runbooks_keys() -> None:
    both = compare_multi_serial(measured("multi"), measured("serial"))
    assert {"model", "multi_url", "serial_url", "labels"} <= set(both)
    assert {
        "abs_diffs_multi_vs_serial",
        "max_abs_diff",
        "mean_abs_diff",
        "multi_scores",
        "serial_scores",
    } <= set(both["equivalence"])
    aligned = both["equivalence_query_plus_delimiter"]
    assert "serial_query_plus_delimiter_scores" in aligned
    assert aligned["max_abs_diff"] == aligned["mean_abs_diff"] == 0.0
    assert both["equivalence"]["max_abs_diff"] > 0.02
    assert both["isolation"]["same_length_mutation_max_abs_diff"] == 0.0
    speed = both["performance"]["32"]
    assert speed["speedup_vs_serial_p50"] == speed["serial_p50_sec"] / speed["multi_p50_sec"]
    assert {"multi_p95_sec", "serial_p95_sec"} <= set(speed)
    assert both["complete"]


def test_parity_has_the_runbooks_keys() -> None:
    found = parity(measured("multi"), measured("serial"), reference(), reference(dtype="bfloat16"))
    assert {
        "model",
        "delimiter",
        "labels",
        "query_ids",
        "item_ids",
        "jax_multi_scores",
        "jax_serial_scores",
        "torch_serial_reference_scores",
        "torch_multi_semantic_reference_scores",
        "abs_diffs_jax_serial_vs_torch_serial",
    } <= set(found)
    assert found["max_abs_diff_jax_serial_vs_torch_serial"] == 0.0
    assert found["max_abs_diff_jax_multi_vs_torch_multi_semantic"] == 0.0
    assert found["max_abs_diff_jax_multi_vs_torch_serial"] > 0.02
    assert found["max_abs_diff_off_by_one_position_vs_torch_serial"] > 0.02
    assert found["torch_performance"]["32"]["best_p50_sec"] == 1.0
    assert found["torch_performance"]["32"]["speedup_vs_torch_serial_p50"] > 1
    assert found["server_dtype"] == "float32"


def test_a_server_that_scores_one_label_is_compared_in_that_one() -> None:
    multi, serial = (
        {
            **results,
            "isolation": {
                **results["isolation"],
                "base_scores": [row[:1] for row in results["isolation"]["base_scores"]],
            },
        }
        for results in (measured("multi"), measured("serial"))
    )
    found = parity(multi, serial, reference(), reference(dtype="bfloat16"))
    assert found["max_abs_diff_jax_serial_vs_torch_serial"] == 0.0
    assert [len(row) for row in found["torch_serial_reference_scores"]] == [1] * 5


def test_a_run_that_ended_early_is_compared_as_far_as_it_came() -> None:
    serial = {**measured("serial"), "complete": False, "error": "lost"}
    del serial["semantic_alignment"], serial["performance"]
    both = compare_multi_serial(measured("multi"), serial)
    assert not both["complete"]
    assert both["performance"] == {}
    assert "equivalence_query_plus_delimiter" not in both
    assert both["isolation"]["changed_length_mutation_max_abs_diff"] == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "multi"}, "have mode 'multi', expected 'serial'"),
        ({"labels": [1, 2]}, "`labels` is"),
        ({"isolation": {}, "error": "lost it"}, "no scores; the evaluation ended with: lost it"),
    ],
)
def test_results_that_do_not_go_together(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        compare_multi_serial(measured("multi"), {**measured("serial"), **change})


def test_other_items_do_not_compare() -> None:
    serial = measured("serial")
    isolation = {**serial["isolation"], "item_ids": [[1]] * 5}
    with pytest.raises(ResultsError, match="`item_ids` differ"):
        compare_multi_serial(measured("multi"), {**serial, "isolation": isolation})


def test_torch_needs_a_model() -> None:
    with pytest.raises(ConfigError, match="--torch-model"):
        compare_with_torch(measured("multi"), measured("serial"))
