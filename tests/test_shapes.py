"""The annotated shapes and types of array functions are checked while tests run."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_type_hints

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError, jaxtyped

from itemwise.engine.packed_sequence import pack, packed_shape
from itemwise.engine.step_packer import Context, RowPlan, StepPacker
from itemwise.models.layers import Numerics, rms_norm
from itemwise.ops.softmax import dot_sum
from tests.ops.step.steps import SHAPE

NUMERICS = Numerics(1e-6, jnp.dtype(jnp.float32))


def test_a_wrong_shape_is_found() -> None:
    x, gain = jnp.ones((3, 8)), jnp.ones(8)
    rms_norm(x, gain, NUMERICS)
    with pytest.raises(TypeCheckError):
        rms_norm(x, gain[:7], NUMERICS)


def test_a_wrong_type_is_found() -> None:
    with pytest.raises(TypeCheckError):
        dot_sum(jnp.ones((3, 8), jnp.bfloat16))


def shape_problems(arrays: Any) -> list[str]:
    """Fields of the arrays of a step that are not as declared."""
    hints = get_type_hints(type(arrays))
    with jaxtyped("context"):
        return [
            name for name, value in arrays._asdict().items() if not isinstance(value, hints[name])
        ]


def packed_steps() -> list[Any]:
    packer = StepPacker(SHAPE)
    packer.add(RowPlan(range(20), 0, Context((1,), (5,)), score_id=0))
    sequence = pack((1,) * 9, [(2,) * 40, (3,)], packed_shape(50, 2, 96, 32))
    return [packer.take().arrays, sequence]


@pytest.mark.parametrize("arrays", packed_steps(), ids=lambda arrays: type(arrays).__name__)
def test_arrays_of_a_step_are_as_declared(arrays: Any) -> None:
    assert shape_problems(arrays) == []
    short = arrays._replace(positions=arrays.positions[:-1])
    assert shape_problems(short) == ["positions"]
    wide = arrays._replace(score_tokens=arrays.score_tokens.astype(np.float32))
    assert shape_problems(wide) == ["score_tokens"]


def test_serving_does_without_the_checker() -> None:
    code = "import sys, itemwise.server.app; print('beartype' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
