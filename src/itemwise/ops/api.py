"""The backends of attention, by name; a program is built with one of each kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax import Array
from jaxtyping import Float

from itemwise.ops.packed.base import PackedLayout
from itemwise.ops.packed.dense import attend_dense
from itemwise.ops.packed.segment import attend_segment
from itemwise.ops.step.cpu import attend_cpu
from itemwise.ops.step.xla import PageWrites, StepLayout, Wanted, attend, write_pages
from itemwise.types import Kernel, Mask, PackedShape, StepShape

# Writes a layer's keys and values into its pages, and attends: q, k, v, pages, the places wanted
# (None: all) and what else is given to each layer, into the attention [T,N,H] and the pages.
# Places not wanted hold anything.
LayerAttention = Callable[..., tuple[Array, tuple[Array, Array]]]


def step_attention(
    writes: PageWrites,
    layout: StepLayout,
    shape: StepShape,
    num_pages: int,
    kernel: Kernel | None = None,
    dot_sums: bool = False,
) -> tuple[LayerAttention, tuple[Any, ...]]:
    """The attention of a step's layers, and what each layer gives it, computed once a step.

    Kernels are imported when asked for: others do without Pallas.
    """
    if kernel == "gpu":
        from itemwise.ops.step.gpu import attend_gpu, lane_walk, page_places, write_places

        walk = lane_walk(layout, shape)

        def attend_on_gpu(
            q: Array,
            k: Array,
            v: Array,
            pages: tuple[Array, Array],
            wanted: Wanted | None,
            *given: Any,
        ) -> tuple[Array, tuple[Array, Array]]:
            places, walk = given
            k_pages, v_pages = (
                write_places(*pair, places) for pair in zip(pages, (k, v), strict=True)
            )
            return attend_gpu(q, k, v, k_pages, v_pages, walk, shape), (k_pages, v_pages)

        return attend_on_gpu, (page_places(writes, walk, num_pages), walk)

    def attend_elsewhere(
        q: Array,
        k: Array,
        v: Array,
        pages: tuple[Array, Array],
        wanted: Wanted | None,
        *given: Any,
    ) -> tuple[Array, tuple[Array, Array]]:
        writes, layout = given
        k_pages, v_pages = (write_pages(*pair, writes) for pair in zip(pages, (k, v), strict=True))
        arrays = q, k, v, k_pages, v_pages, layout, shape
        if kernel == "tpu":
            from itemwise.ops.step.tpu import attend_tpu

            return attend_tpu(*arrays), (k_pages, v_pages)
        if kernel is None:
            return attend(*arrays, dot_sums), (k_pages, v_pages)
        return attend_cpu(*arrays, wanted, level=kernel), (k_pages, v_pages)

    return attend_elsewhere, (writes, layout)


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

    On TPU and GPU `segment` is a kernel; `dense` has none, and processors have none for either.
    """
    if mask == "dense":
        return attend_dense(q, k, v, layout)
    if kernel == "tpu":
        from itemwise.ops.packed.tpu import attend_packed_tpu  # loads Pallas

        return attend_packed_tpu(q, k, v, layout)
    if kernel == "gpu":
        from itemwise.ops.packed.gpu import attend_packed_gpu

        return attend_packed_gpu(q, k, v, layout)
    return attend_segment(q, k, v, layout, shape.granule_tokens)
