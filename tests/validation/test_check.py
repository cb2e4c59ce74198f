from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from itemwise.validation.check import run_checks, summary

BOTH: dict[str, Any] = {
    "isolation": {
        "same_length_mutation_max_abs_diff": 0.0,
        "changed_length_mutation_max_abs_diff": 0.0,
    },
    "equivalence_query_plus_delimiter": {"max_abs_diff": 0.0148},
    "performance": {"32": {"speedup_vs_serial_p50": 4.69}},
}
PARITY: dict[str, Any] = {
    "max_abs_diff_jax_serial_vs_torch_serial": 0.0041,
    "server_dtype": "bfloat16",
    "torch_performance": {"32": {"speedup_vs_torch_serial_p50": 30.0}},
}


def verdicts(both: Any = BOTH, parity: Any = PARITY, *, strict: bool = False) -> dict[str, bool]:
    found = summary(run_checks(both, parity, strict=strict))["checks"]
    return {name: check["pass"] for name, check in found.items()}


def test_published_figures_pass_the_runbook_and_not_the_strict_bounds() -> None:
    assert all(verdicts().values())
    strict = verdicts(strict=True)
    assert {name for name, passed in strict.items() if not passed} == {
        "delimiter_aligned_equiv_le_0p02",
        "speedup_n32_ge_3x",
    }


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        (("isolation", "same_length_mutation_max_abs_diff"), 1e-9, "same_length_isolation_zero"),
        (("isolation", "changed_length_mutation_max_abs_diff"), math.nan, "changed_length"),
        (("equivalence_query_plus_delimiter", "max_abs_diff"), 0.0201, "delimiter_aligned"),
        (("performance", "32"), {"speedup_vs_serial_p50": 2.99}, "speedup_n32_ge_3x"),
    ],
)
def test_each_bound_holds(path: tuple[str, str], value: Any, name: str) -> None:
    both = copy.deepcopy(BOTH)
    both[path[0]][path[1]] = value
    (failed,) = [check for check, passed in verdicts(both).items() if not passed]
    assert failed.startswith(name)


def test_what_was_not_measured_fails_and_says_so() -> None:
    checks = run_checks({"performance": {"8": {}}}, {})
    assert not any(check.passed for check in checks)
    assert all("not measured" in str(check.note) for check in checks)
    assert summary(checks)["checks"]["speedup_n32_ge_3x"]["value"] is None


@pytest.mark.parametrize(
    ("dtype", "value", "passed"),
    [
        ("float32", 9e-5, True),
        ("float32", 2e-4, False),
        ("bfloat16", 0.009, True),
        (None, 2e-4, False),
    ],
)
def test_strict_parity_goes_by_the_servers_type(dtype: Any, value: float, passed: bool) -> None:
    parity = {**PARITY, "server_dtype": dtype, "max_abs_diff_jax_serial_vs_torch_serial": value}
    assert verdicts(BOTH, parity, strict=True)["jax_serial_vs_torch_serial_le_0p02"] is passed


def test_strict_speed_needs_both_baselines() -> None:
    fast = {**BOTH, "performance": {"32": {"speedup_vs_serial_p50": 12.0}}}
    assert verdicts(fast, strict=True)["speedup_n32_ge_3x"]
    slower = {**PARITY, "torch_performance": {"32": {"speedup_vs_torch_serial_p50": 9.0}}}
    assert not verdicts(fast, slower, strict=True)["speedup_n32_ge_3x"]
    assert not verdicts(fast, {**PARITY, "torch_performance": {}}, strict=True)["speedup_n32_ge_3x"]
