"""Attention of a step: every row sees its context and, causally, itself.

The meaning that every backend keeps, `StepAttention`, and what they share: pages in storage form,
and the writing of pages. `xla.py` is the plain form; the others are held to it by one suite.

Whatever the backend, a masked place is an exact no-op, even if its key is NaN, and neither the
place of a row in its step nor what lies beside it enters a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Shaped

from itemwise.ops.step.arrays import StepArrays, StepShape


class Pages(NamedTuple):
    """A layer's cached keys and values, in storage form; see `to_storage`."""

    k: Shaped[Array, "P K page H"]
    v: Shaped[Array, "P K page H"]


# Gives pages [..., page, H] another order within, in the same shape.
PageLayout = Callable[[Array], Array]


class StepAttention(Protocol):
    """A backend of the step's attention."""

    def __call__(
        self,
        q: Float[Array, "T N H"],
        k: Float[Array, "T K H"],
        v: Float[Array, "T K H"],
        pages: Pages,
        arrays: StepArrays,
        shape: StepShape,
    ) -> Float[Array, "T N H"]:
        """Attention output of every token place; places outside rows hold finite garbage.

        A token of a row sees the valid tokens of its lane's context, and its own row up to itself.
        N is a multiple of K: each key/value head serves as many query heads, side by side.

        Args:
            q: queries, not scaled.
            k: keys of the step's own tokens.
            v: values of the step's own tokens, finite; see `softmax.mark_in_keys`.
            pages: the layer's pages, in which those that the step writes are written already.
                Their values are finite as well, whatever is left in a page.
            arrays: who sees whom: lanes with their contexts, and granules, which say what rows
                there are.
            shape: sizes of the step.
        """
        ...


def to_storage(values: Array) -> Array:
    """Keys or values as the page pool keeps them: bfloat16 as its bits, in uint16.

    XLA on CPU slices and updates bfloat16 arrays by way of float32, all of the pool each time.
    """
    if values.dtype != jnp.bfloat16:
        return values
    return lax.bitcast_convert_type(values, jnp.uint16)


def from_storage(stored: Array, dtype: jnp.dtype) -> Array:
    """The inverse of `to_storage`."""
    return stored if stored.dtype == dtype else lax.bitcast_convert_type(stored, dtype)


def write_pages(
    pool: Shaped[Array, "P K page H"],
    new: Float[Array, "T K H"],
    arrays: StepArrays,
    lay_out: PageLayout = lambda page: page,
) -> Shaped[Array, "P K page H"]:
    """The pool with the keys or values of the writing rows in their pages, updated in place.

    A row may be shorter than a page, whose end then holds what follows the row in the step.
    `lay_out` gives a page the order of its numbers.
    """
    page_tokens = pool.shape[2]
    stored = jnp.pad(to_storage(new), ((0, page_tokens), (0, 0), (0, 0)))

    def one(i: Array, pool: Array) -> Array:
        page = lax.dynamic_slice_in_dim(stored, arrays.write_starts[i], page_tokens)
        page = lay_out(page.transpose(1, 0, 2)[None])
        return lax.dynamic_update_slice_in_dim(pool, page, arrays.write_pages[i], 0)

    written: Array = lax.fori_loop(0, arrays.num_writes, one, pool)
    return written
