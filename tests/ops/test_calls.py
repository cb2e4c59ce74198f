"""What the C++ kernels answer to wrong calls: the program that calls fails, with a reason."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from itemwise.engine.cpu_level import BY_NAME
from itemwise.ops.linear.cpu import target
from itemwise.ops.load_cpu import Kernels
from itemwise.types import CppLevel

PLACES, INPUTS = 4, 8


@pytest.fixture(scope="module")
def kernels(level: CppLevel) -> Kernels:
    found = BY_NAME[level].kernels()
    assert found is not None
    return found


def multiply(kernels: Kernels, *arguments: Any, **attributes: Any) -> Array:
    size = (PLACES, kernels.panel_width)
    call = jax.ffi.ffi_call(target(kernels.level), jax.ShapeDtypeStruct(size, jnp.float32))
    found: Array = call(*arguments, **attributes)
    return found


def right_arguments(kernels: Kernels) -> list[Any]:
    rows = np.ones((PLACES, INPUTS), np.float32)
    panels = np.ones((1, INPUTS, kernels.panel_width), np.float32)
    return [rows, panels, np.int32(PLACES - 1)]


def test_a_right_call_is_answered(kernels: Kernels) -> None:
    found = np.asarray(multiply(kernels, *right_arguments(kernels)))
    assert (found[:-1] == INPUTS).all()
    assert (found[-1] == 0).all()


@pytest.mark.parametrize(
    ("place", "change", "reason"),
    [
        (0, lambda rows: rows.astype(np.int32), "an array has another type"),
        (0, lambda rows: rows[None], "an array has another number of axes"),
        (0, lambda rows: rows[1:], "weights have another shape"),
        (1, lambda panels: panels[:, 1:], "weights have another shape"),
        (1, lambda panels: panels.astype(np.uint8), "weights are neither"),
        (2, lambda number: np.array([number]), "an array has another number of axes"),
        (2, lambda number: np.uint32(number), "an array has another type"),
    ],
)
def test_wrong_arrays_are_refused(place: int, change: Any, reason: str, kernels: Kernels) -> None:
    arguments = right_arguments(kernels)
    arguments[place] = change(arguments[place])
    with pytest.raises(jax.errors.JaxRuntimeError, match=reason):
        multiply(kernels, *arguments).block_until_ready()


def test_another_number_of_arrays_is_refused(kernels: Kernels) -> None:
    arguments = right_arguments(kernels)
    with pytest.raises(jax.errors.JaxRuntimeError, match="too few arguments"):
        multiply(kernels, *arguments[:-1]).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match="another number of arguments"):
        multiply(kernels, *arguments, np.int32(1)).block_until_ready()
