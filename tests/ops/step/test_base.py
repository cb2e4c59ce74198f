from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from itemwise.ops.step.base import from_storage, to_storage


def test_storage_keeps_every_bit() -> None:
    drawn = np.random.default_rng(0).standard_normal(100, np.float32)
    for dtype in (jnp.bfloat16, jnp.float32):
        values = jnp.asarray(drawn, dtype)
        assert (from_storage(to_storage(values), jnp.dtype(dtype)) == values).all()
