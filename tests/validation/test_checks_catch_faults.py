"""Servers with planted faults fail the checks that should catch them, and only those."""

from __future__ import annotations

import pytest

from itemwise.validation.check import run_checks, summary
from itemwise.validation.compare import compare_multi_serial, parity
from itemwise.validation.evaluate import Mode
from itemwise.validation.files import Json
from tests.validation.planted import Fault, measured_once, reference

SAME, CHANGED = "same_length_isolation_zero", "changed_length_isolation_zero"
ALIGNED, SPEED = "delimiter_aligned_equiv_le_0p02", "speedup_n32_ge_3x"
PARITY = "jax_serial_vs_torch_serial_le_0p02"


def checks(multi: Fault | None, serial: Fault | None, *, strict: bool = False) -> Json:
    pair = (measured_once("multi", multi), measured_once("serial", serial))
    parities = parity(*pair, reference(), reference(dtype="bfloat16"))
    return summary(run_checks(compare_multi_serial(*pair), parities, strict=strict))


def failed(multi: Fault | None, serial: Fault | None, *, strict: bool = False) -> set[str]:
    found = checks(multi, serial, strict=strict)
    assert found["all_pass"] == all(check["pass"] for check in found["checks"].values())
    return {name for name, check in found["checks"].items() if not check["pass"]}


def test_a_right_server_passes_all() -> None:
    found = checks(None, None)
    assert set(found["checks"]) == {SAME, CHANGED, ALIGNED, SPEED, PARITY}
    assert found["all_pass"]
    for name in (SAME, CHANGED, ALIGNED):
        assert found["checks"][name]["value"] == 0.0


@pytest.mark.parametrize(
    ("multi", "serial", "caught_by"),
    [
        ("leak", None, {SAME, CHANGED}),
        ("swapped", None, {ALIGNED}),
        ("shifted", None, {ALIGNED}),
        ("swapped", "swapped", {PARITY}),
        ("shifted", "shifted", {PARITY}),
        (None, "swapped", {ALIGNED, PARITY}),
        (None, "coarse", set[str]()),
    ],
)
def test_planted_fault_is_caught(
    multi: Fault | None, serial: Fault | None, caught_by: set[str]
) -> None:
    assert failed(multi, serial) == caught_by


def test_strict_bounds_catch_what_the_runbook_lets_pass() -> None:
    assert failed(None, "coarse", strict=True) >= {ALIGNED, PARITY}


def test_a_slow_multi_server_fails_the_speed_check_alone() -> None:
    modes: tuple[Mode, Mode] = ("multi", "serial")
    multi, serial = (measured_once(mode, None) for mode in modes)
    both = compare_multi_serial({**multi, "performance": serial["performance"]}, serial)
    parities = parity(multi, serial, reference(), reference(dtype="bfloat16"))
    found = summary(run_checks(both, parities))
    assert {name for name, check in found["checks"].items() if not check["pass"]} == {SPEED}
