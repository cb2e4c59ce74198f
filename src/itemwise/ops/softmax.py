"""Online softmax, and a row's attention to itself: what every XLA form is built from.

Blocks of keys are taken in one after the other (Milakov and Gimelshein, 2018, "Online normalizer
calculation for softmax"). A masked place is an exact no-op: its score is minus infinity, so the
running maximum keeps its value, and its value times zero is added, which is zero if the value is
finite. `mark_in_keys` makes it so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Int32

# Finite, so that the difference of two running maxima is never "inf - inf"; any score exceeds it.
LOWEST = -1e30
SUM_COLUMNS = 16  # of `dot_sum`


@runtime_checkable
class Granules(Protocol):
    """The arrays that name the granules of rows; see `StepArrays`."""

    @property
    def granule_start(self) -> Int32[Array, " granules"]:
        """First token place of each granule, increasing."""
        ...

    @property
    def granule_index(self) -> Int32[Array, " granules"]:
        """Granules of the same row before it."""
        ...

    @property
    def num_granules(self) -> Int32[Array, ""]:
        """Granules in use."""
        ...


class SoftmaxState(NamedTuple):
    """Running state of the online softmax: maximum, sum of weights, weighted sum of values."""

    top: Float32[Array, "*rows"]
    weight: Float32[Array, "*rows"]
    total: Float32[Array, "*rows H"]


def dot_precision(dtype: jnp.dtype) -> lax.Precision | None:
    """Full precision for float32; accelerators else multiply it in fewer bits."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None


def mark_in_keys(
    k: Float[Array, "*places H"], v: Float[Array, "*places H"]
) -> tuple[Float[Array, "*places H"], Float[Array, "*places H"]]:
    """Keys and values, with what is not finite in a value marked by NaN in its key instead.

    Whoever sees such a place still gets NaN, by way of its score. Whoever does not, gets nothing of
    it: a mask selects among scores, but it multiplies values by zero, and zero times NaN or
    infinity is NaN. That must hold for all that lies beside a row in a step or is left in a page.
    """
    finite = jnp.isfinite(v)
    nan, zero = jnp.asarray(jnp.nan, k.dtype), jnp.zeros((), v.dtype)
    return jnp.where(finite, k, nan), jnp.where(finite, v, zero)


def _sum(x: Array) -> Array:
    return x.sum(-1)


def product(equation: str, a: Array, b: Array, result: DTypeLike = jnp.float32) -> Array:
    """`einsum` of two arrays in the wider of their types, summed in float32.

    On CPU the result must not be narrower: a bfloat16 one is several times slower.
    """
    dtype = max(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    found: Array = jnp.einsum(
        equation,
        a.astype(dtype),
        b.astype(dtype),
        preferred_element_type=result,
        precision=dot_precision(dtype),
    )
    return found


def scaled_scores(equation: str, q: Array, k: Array) -> Array:
    """Scaled products of queries and keys, float32 [..., keys]."""
    scores: Array = product(equation, q, k) * q.shape[-1] ** -0.5
    return scores


def dot_sum(x: Float32[Array, "rows n"]) -> Float32[Array, " rows"]:
    """Sums over the last axis by a matrix product.

    On CPU the order in which it adds does not depend on the number of rows. That of XLA's own sums
    does, and so does that of a product with few columns: of SUM_COLUMNS equal ones, one is kept.
    The barriers keep what is around out of it.
    """
    ones = jnp.ones((x.shape[-1], SUM_COLUMNS), jnp.float32)
    sums = product("tn,ns->ts", lax.optimization_barrier(x), ones)
    first: Array = lax.optimization_barrier(sums[:, 0])
    return first


def accumulate(
    sums: SoftmaxState,
    scores: Array,
    v: Array,
    equation: str,
    sum_keys: Callable[[Array], Array] = _sum,
) -> SoftmaxState:
    """Takes one block of keys into the sums. `scores` [..., keys], masked with minus infinity."""
    top = jnp.maximum(sums.top, scores.max(-1))
    p, shrink = jnp.exp(scores - top[..., None]), jnp.exp(sums.top - top)
    seen = product(equation, p.astype(v.dtype), v)
    total = sums.total * shrink[..., None] + seen
    return SoftmaxState(top, sums.weight * shrink + sum_keys(p), total)


def own_rows(
    q: Float[Array, "K places group H"],
    k: Float[Array, "K places H"],
    v: Float[Array, "K places H"],
    arrays: Granules,
    granule: int,
) -> SoftmaxState:
    """Sums over each token's own row up to itself. Returns arrays [K, places, group(, H)].

    A granule may hold fewer tokens than it has places: what lies past them belongs to a later
    granule, which overwrites it, or to nobody. Granules come in the order of their start. There
    are at least a granule's places behind the last token, for the last granule to end in.
    """
    num_kv_heads, num_places, group, head_dim = q.shape
    rows = (num_kv_heads, granule * group)
    # Place t sees place s <= t of its granule; the heads of a group sit side by side.
    causal = jnp.arange(granule * group)[:, None] // group >= jnp.arange(granule)[None]

    def one_granule(n: Array, sums: SoftmaxState) -> SoftmaxState:
        start = arrays.granule_start[n]
        q_n = lax.dynamic_slice_in_dim(q, start, granule, 1).reshape(*rows, head_dim)

        def one_product(j: Array, own: SoftmaxState) -> SoftmaxState:
            k_j = lax.dynamic_slice_in_dim(k, start - j * granule, granule, 1)
            v_j = lax.dynamic_slice_in_dim(v, start - j * granule, granule, 1)
            scores = jnp.where(causal | (j > 0), scaled_scores("kth,ksh->kts", q_n, k_j), -jnp.inf)
            return accumulate(own, scores, v_j, "kts,ksh->kth")

        own = lax.fori_loop(0, arrays.granule_index[n] + 1, one_product, no_sums(rows, head_dim))

        def put(whole: Array, part: Array) -> Array:
            part = part.reshape(num_kv_heads, granule, group, *part.shape[2:])
            return lax.dynamic_update_slice_in_dim(whole, part, start, 1)

        return SoftmaxState(*map(put, sums, own))

    empty = no_sums((num_kv_heads, num_places, group), head_dim)
    sums: SoftmaxState = lax.fori_loop(0, arrays.num_granules, one_granule, empty)
    return sums


def with_places(a: Float[Array, "T ..."], count: int) -> Float[Array, "places ..."]:
    """The array with so many places of zeros behind its first axis."""
    return jnp.pad(a, [(0, count)] + [(0, 0)] * (a.ndim - 1))


def no_sums(rows: tuple[int, ...], head_dim: int) -> SoftmaxState:
    """The sums before any block."""
    return SoftmaxState(
        jnp.full(rows, LOWEST, jnp.float32),
        jnp.zeros(rows, jnp.float32),
        jnp.zeros((*rows, head_dim), jnp.float32),
    )
