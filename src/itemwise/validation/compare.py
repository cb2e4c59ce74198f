"""Results of `evaluate` side by side: multi against serial, and both against PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from itemwise.checkpoint.locate import locate
from itemwise.errors import ConfigError, ResultsError
from itemwise.machine import environment
from itemwise.progress import ProgressFn, silent
from itemwise.validation.files import Json
from itemwise.validation.measures import Scores, abs_diffs, average, largest, max_abs_diff
from itemwise.validation.torch_parity import Asked, Reference, torch_reference

TIMED_COUNT = 32  # number of items for the timing of transformers


def compare_multi_serial(multi: Json, serial: Json) -> Json:
    """The JSON of multi against serial, from two results of `evaluate`.

    A part that one of them lacks, because its run ended early, is also missing here.

    Raises:
        ResultsError: they have different workloads or no scores.
    """
    _check_pair(multi, serial)
    alike, serial_isolation = multi["isolation"], serial["isolation"]
    multi_scores, serial_scores = alike["base_scores"], serial_isolation["base_scores"]
    results: Json = {
        "model": multi["model"],
        "multi_url": multi["url"],
        "serial_url": serial["url"],
        "labels": multi["labels"],
        "delimiter": multi["delimiter"],
        "workload": multi.get("workload"),
        "complete": bool(multi.get("complete") and serial.get("complete")),
        "equivalence": {
            **_equivalence(multi_scores, serial_scores),
            "multi_scores": multi_scores,
            "serial_scores": serial_scores,
        },
        "isolation": _isolation(alike),
        "performance": _performance(multi, serial),
        "environment": environment(),
    }
    alignment = serial.get("semantic_alignment")
    if alignment:
        aligned = alignment["base_scores_query_plus_delimiter"]
        results["equivalence_query_plus_delimiter"] = {
            **_equivalence(multi_scores, aligned),
            "multi_scores": multi_scores,
            "serial_query_plus_delimiter_scores": aligned,
        }
    for name in ("probes", "negative_control", "sweeps"):
        if name in multi:
            results[name] = multi[name]
    return results


def _check_pair(multi: Json, serial: Json) -> None:
    for name, results in (("multi", multi), ("serial", serial)):
        if results.get("mode") != name:
            raise ResultsError(
                f"the {name} results have mode {results.get('mode')!r}, expected {name!r}: use "
                f"the file that `itemwise evaluate --mode {name}` wrote"
            )
        if "base_scores" not in results.get("isolation", {}):
            raise ResultsError(
                f"the {name} results have no scores; the evaluation ended with: "
                f"{results.get('error') or 'no error recorded'}"
            )
    for name in ("labels", "delimiter", "apply_softmax"):
        if multi.get(name) != serial.get(name):
            raise ResultsError(
                f"`{name}` is {multi.get(name)} in the multi and {serial.get(name)} in the "
                "serial results, expected the same: evaluate both with the same workload"
            )
    for name in ("query_ids", "item_ids"):
        if multi["isolation"].get(name) != serial["isolation"].get(name):
            raise ResultsError(
                f"`{name}` differ between the multi and serial results: evaluate both with the "
                "same workload"
            )


def _equivalence(multi: Scores, serial: Scores) -> Json:
    diffs = abs_diffs(multi, serial)
    return {
        "abs_diffs_multi_vs_serial": diffs,
        "max_abs_diff": largest(diffs),
        "mean_abs_diff": average(diffs),
    }


def _isolation(isolation: Json) -> Json:
    found: Json = {}
    for name in ("same_length_mutation", "changed_length_mutation"):
        if name in isolation:
            mutation = isolation[name]
            found[f"{name}_max_abs_diff"] = mutation["max_abs_diff_unchanged"]
            found[f"{name}_mean_abs_diff"] = mutation["mean_abs_diff_unchanged"]
    return found


def _performance(multi: Json, serial: Json) -> Json:
    ours, theirs = multi.get("performance", {}), serial.get("performance", {})
    return {
        count: {
            "multi_p50_sec": ours[count]["p50_sec"],
            "multi_p95_sec": ours[count]["p95_sec"],
            "serial_p50_sec": theirs[count]["p50_sec"],
            "serial_p95_sec": theirs[count]["p95_sec"],
            "multi_items_per_sec_p50": ours[count]["items_per_sec_p50"],
            "serial_items_per_sec_p50": theirs[count]["items_per_sec_p50"],
            "speedup_vs_serial_p50": theirs[count]["p50_sec"] / ours[count]["p50_sec"],
            "speedup_vs_serial_p95": theirs[count]["p95_sec"] / ours[count]["p95_sec"],
            "rounds": [len(ours[count]["latencies_sec"]), len(theirs[count]["latencies_sec"])],
        }
        for count in ours
        if count in theirs
    }


def compare_with_torch(
    multi: Json, serial: Json, torch_model: str | None = None, on_progress: ProgressFn = silent
) -> Json:
    """The JSON of parity: both endpoints against transformers, in float32 and in bfloat16.

    Args:
        multi: results of `evaluate` in multi mode.
        serial: results of `evaluate` in serial mode.
        torch_model: folder or Hub id of the checkpoint; None for the model that was evaluated.
        on_progress: called during loading and rounds.

    Raises:
        ResultsError: the results do not match.
        ConfigError: torch is missing, no model is named, or it does not fit into memory.
        CheckpointError: the checkpoint cannot be found or read.
    """
    _check_pair(multi, serial)
    name = torch_model or multi["model"]
    if not name:
        raise ConfigError("the results do not name a model; give its checkpoint with --torch-model")
    folder = locate(name)
    asked = _asked(multi)
    wide = torch_reference(folder, "float32", asked, on_progress)
    narrow = torch_reference(folder, "bfloat16", asked, on_progress)
    return parity(multi, serial, wide, narrow)


def _asked(multi: Json) -> Asked:
    amount = multi.get("amount", {})
    measured = str(TIMED_COUNT) in multi.get("performance", {})
    return Asked(
        query=multi["isolation"]["query_ids"],
        items=multi["isolation"]["item_ids"],
        labels=multi["labels"],
        delimiter=multi["delimiter"],
        apply_softmax=multi.get("apply_softmax", True),
        timed_counts=(TIMED_COUNT,) if measured else (),
        rounds=amount.get("rounds", 3),
        warmup=amount.get("warmup", 1),
    )


def parity(multi: Json, serial: Json, wide: Reference, narrow: Reference) -> Json:
    """The JSON of parity, from PyTorch's scores in float32 (`wide`) and bfloat16 (`narrow`)."""
    isolation = multi["isolation"]
    jax_multi, jax_serial = isolation["base_scores"], serial["isolation"]["base_scores"]
    wide, narrow = (_of_labels(reference, len(jax_multi[0])) for reference in (wide, narrow))
    pairs = {
        "jax_serial_vs_torch_serial": (jax_serial, wide.serial),
        "jax_multi_vs_torch_multi_semantic": (jax_multi, wide.multi_semantic),
        "jax_multi_vs_torch_serial": (jax_multi, wide.serial),
        "torch_bfloat16_vs_torch_serial": (narrow.serial, wide.serial),
        "torch_bfloat16_vs_torch_multi_semantic": (narrow.multi_semantic, wide.multi_semantic),
        "off_by_one_position_vs_torch_serial": (wide.shifted, wide.serial),
    }
    diffs = {name: abs_diffs(a, b) for name, (a, b) in pairs.items()}
    results: Json = {
        "model": multi["model"],
        "delimiter": multi["delimiter"],
        "labels": multi["labels"],
        "server_dtype": serial.get("server_dtype"),
        "query_ids": isolation["query_ids"],
        "item_ids": isolation["item_ids"],
        "jax_multi_scores": jax_multi,
        "jax_serial_scores": jax_serial,
        "torch_serial_reference_scores": wide.serial,
        "torch_multi_semantic_reference_scores": wide.multi_semantic,
        "torch_bfloat16_serial_scores": narrow.serial,
        "torch_bfloat16_multi_semantic_scores": narrow.multi_semantic,
    }
    results |= {f"abs_diffs_{name}": found for name, found in diffs.items()}
    results |= {f"max_abs_diff_{name}": largest(found) for name, found in diffs.items()}
    results |= {f"mean_abs_diff_{name}": average(found) for name, found in diffs.items()}
    results["delimiter_effect_torch_max_abs_diff"] = max_abs_diff(wide.multi_semantic, wide.serial)
    results["torch_performance"] = _torch_performance(multi, (wide, narrow))
    results["environment"] = environment()
    return results


def _of_labels(reference: Reference, count: int) -> Reference:
    """The reference for the labels that a server scores: some score only the first."""
    serial, multi_semantic, shifted = (
        [row[:count] for row in scores]
        for scores in (reference.serial, reference.multi_semantic, reference.shifted)
    )
    return replace(reference, serial=serial, multi_semantic=multi_semantic, shifted=shifted)


def _torch_performance(multi: Json, references: Sequence[Reference]) -> Json:
    """Transformers one item after the other, in each type; speed-ups are over the faster one."""
    found: Json = {}
    for count in references[0].latencies:
        by_type: dict[str, Any] = {
            one.dtype: one.performance()[str(count)] for one in references if count in one.latencies
        }
        best = min(by_type, key=lambda dtype: by_type[dtype]["p50_sec"])
        row = {**by_type, "best_dtype": best, "best_p50_sec": by_type[best]["p50_sec"]}
        ours = multi.get("performance", {}).get(str(count))
        if ours:
            row["speedup_vs_torch_serial_p50"] = row["best_p50_sec"] / ours["p50_sec"]
        found[str(count)] = row
    return found
