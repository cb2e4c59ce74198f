"""What the TPU kernels share: online softmax whose sums stay in VMEM."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from itemwise.ops.softmax import LOWEST, dot_precision

VMEM_BYTES = 100 << 20  # of the 128 MiB of v5e and v6e; the compiler keeps the rest
VECTOR_LANES = 128  # numbers side by side in a vector register


def clear_sums(top_vmem: Any, weight_vmem: Any, total_vmem: Any) -> None:
    """The sums before any tile."""
    top_vmem[...] = jnp.full_like(top_vmem, LOWEST)
    weight_vmem[...] = jnp.zeros_like(weight_vmem)
    total_vmem[...] = jnp.zeros_like(total_vmem)


def scaled_products(q: Float[Array, "rows H"], k: Float[Array, "keys H"]) -> Array:
    """Scaled products of queries and keys, float32 [rows, keys]."""
    products = lax.dot_general(
        q,
        k,
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
        precision=dot_precision(q.dtype),
    )
    scores: Array = products * q.shape[-1] ** -0.5
    return scores


def take_in(
    scores: Float[Array, "rows keys"],
    v: Float[Array, "keys H"],
    top_vmem: Any,
    weight_vmem: Any,
    total_vmem: Any,
) -> None:
    """Takes a tile into the sums, as `softmax.accumulate`; tops and weights fill all lanes."""
    before = top_vmem[:, :1]
    top = jnp.maximum(before, scores.max(-1, keepdims=True))
    p, shrink = jnp.exp(scores - top), jnp.exp(before - top)
    seen = jnp.dot(
        p.astype(v.dtype),
        v,
        preferred_element_type=jnp.float32,
        precision=dot_precision(v.dtype),
    )
    weight = weight_vmem[:, :1] * shrink + p.sum(-1, keepdims=True)
    total_vmem[...] = total_vmem[...] * shrink + seen
    top_vmem[...] = jnp.broadcast_to(top, top_vmem.shape)
    weight_vmem[...] = jnp.broadcast_to(weight, weight_vmem.shape)
