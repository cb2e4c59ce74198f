"""The five checks of the validation runbook."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from itemwise.validation.files import Json

SPEED_COUNT = "32"
STRICT_PARITY = {"float32": 1e-4, "bfloat16": 0.01}


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: the runbook's name of it.
        value: the measured value; None if there is none.
        bound: the bound that the value must keep.
        relation: between the value and the bound.
        note: why there is no value, or which bound applies.
    """

    name: str
    value: float | None
    bound: float
    relation: Literal["==", "<=", ">="]
    note: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the value keeps the bound; false if nothing was measured."""
        if self.value is None or not math.isfinite(self.value):
            return False
        if self.relation == ">=":
            return self.value >= self.bound
        return self.value == self.bound if self.relation == "==" else self.value <= self.bound

    def as_json(self) -> Json:
        """The check as JSON values, for `itemwise check`."""
        found: Json = {
            "pass": self.passed,
            "value": self.value,
            "bound": self.bound,
            "relation": self.relation,
        }
        return found if self.note is None else {**found, "note": self.note}


def run_checks(multi_vs_serial: Json, parity: Json, *, strict: bool = False) -> list[Check]:
    """The five checks over the two results of `compare`.

    A check whose value was not measured fails and says so. `strict` uses Itemwise's own bounds
    instead of the runbook's.
    """
    aligned, aligned_why = _number(
        multi_vs_serial, "equivalence_query_plus_delimiter", "max_abs_diff"
    )
    checks = []
    for length in ("same", "changed"):
        name = f"{length}_length_mutation_max_abs_diff"
        value, why = _number(multi_vs_serial, "isolation", name)
        checks.append(Check(f"{length}_length_isolation_zero", value, 0.0, "==", why))
    aligned_bound = 0.0 if strict else 0.02
    checks.append(
        Check("delimiter_aligned_equiv_le_0p02", aligned, aligned_bound, "<=", aligned_why)
    )
    checks.append(_speed_check(multi_vs_serial, parity, strict))
    checks.append(_parity_check(parity, strict))
    return checks


def summary(checks: list[Check]) -> Json:
    """The JSON of `itemwise check`."""
    return {
        "checks": {check.name: check.as_json() for check in checks},
        "all_pass": all(check.passed for check in checks),
    }


def _speed_check(multi_vs_serial: Json, parity: Json, strict: bool) -> Check:
    own, why = _number(multi_vs_serial, "performance", SPEED_COUNT, "speedup_vs_serial_p50")
    if not strict:
        return Check("speedup_n32_ge_3x", own, 3.0, ">=", why)
    torch, torch_why = _number(
        parity, "torch_performance", SPEED_COUNT, "speedup_vs_torch_serial_p50"
    )
    name = "speedup_n32_ge_3x"
    if own is None or torch is None:
        return Check(name, None, 10.0, ">=", why or torch_why)
    note = f"{own:.2f} against its own serial, {torch:.2f} against transformers serial"
    return Check(name, min(own, torch), 10.0, ">=", note)


def _parity_check(parity: Json, strict: bool) -> Check:
    name = "jax_serial_vs_torch_serial_le_0p02"
    value, why = _number(parity, "max_abs_diff_jax_serial_vs_torch_serial")
    if not strict:
        return Check(name, value, 0.02, "<=", why)
    dtype = parity.get("server_dtype")
    bound = STRICT_PARITY.get(str(dtype), STRICT_PARITY["float32"])
    taken = (
        f"the bound for {dtype if dtype in STRICT_PARITY else 'float32, as the type is unknown'}"
    )
    return Check(name, value, bound, "<=", why or taken)


def _number(results: Json, *path: str) -> tuple[float | None, str | None]:
    """The number at a path of keys; otherwise None and the reason."""
    found: Any = results
    for key in path:
        if not isinstance(found, dict) or key not in found:
            return None, f"not measured: the results have no `{'.'.join(path)}`"
        found = found[key]
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None, f"`{'.'.join(path)}` is {found!r}, expected a number"
    return float(found), None
