"""The backends of attention, by name; a program is built with one of each kind."""

from __future__ import annotations

from jax import Array
from jaxtyping import Float

from itemwise.ops.dense import attend_dense
from itemwise.ops.packed import PackedLayout
from itemwise.ops.segment import attend_segment
from itemwise.types import Kernel, Mask, PackedShape


def attend_packed(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    layout: PackedLayout,
    shape: PackedShape,
    mask: Mask,
    kernel: Kernel | None = None,
) -> Float[Array, "T N H"]:
    """Attention of a packed sequence; places of padding hold finite garbage.

    On TPU `segment` is a kernel; `dense` has none, and processors have none for either.
    """
    if mask == "dense":
        return attend_dense(q, k, v, layout)
    if kernel == "tpu":
        from itemwise.ops.tpu_packed import attend_packed_tpu  # loads Pallas

        return attend_packed_tpu(q, k, v, layout)
    return attend_segment(q, k, v, layout, shape.granule_tokens)
