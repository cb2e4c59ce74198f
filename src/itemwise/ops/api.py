"""The backends of attention, by name; a program is built with one of each kind."""

from __future__ import annotations

import functools
from collections.abc import Callable

from jax import Array

from itemwise.ops.packed.base import PackedArrays, PackedShape
from itemwise.ops.packed.dense import attend_dense
from itemwise.ops.packed.segment import attend_segment
from itemwise.ops.softmax import mark_in_keys
from itemwise.ops.step.arrays import StepArrays, StepShape
from itemwise.ops.step.base import Pages, write_pages
from itemwise.ops.step.cpu import attend_cpu, page_layouts
from itemwise.ops.step.xla import attend_xla
from itemwise.types import CppLevel, Kernel, Mask

# Writes a layer's keys and values into its pages, and attends. Takes q, k, v, the pages, and
# whether only the attention of scored tokens is needed: other places may then hold anything.
# Returns the attention [T,N,H] and the pages.
LayerAttention = Callable[[Array, Array, Array, Pages, bool], tuple[Array, Pages]]


def step_attention(
    arrays: StepArrays,
    shape: StepShape,
    num_pages: int,
    kernel: Kernel | None = None,
    dot_sums: bool = False,
) -> LayerAttention:
    """The attention of a step's layers; what they share is computed here, once a step.

    Kernels are imported when asked for: others do without Pallas.
    """
    if kernel == "gpu":
        return _attention_on_gpu(arrays, shape, num_pages)
    if kernel is not None and kernel != "tpu":
        return _attention_in_cpp(arrays, shape, kernel)

    def attend_layer(
        q: Array, k: Array, v: Array, pages: Pages, scored_only: bool
    ) -> tuple[Array, Pages]:
        k, v = mark_in_keys(k, v)
        pages = Pages(write_pages(pages.k, k, arrays), write_pages(pages.v, v, arrays))
        if kernel == "tpu":
            from itemwise.ops.step.tpu import attend_tpu

            return attend_tpu(q, k, v, pages, arrays, shape), pages
        return attend_xla(q, k, v, pages, arrays, shape, dot_sums=dot_sums), pages

    return attend_layer


def _attention_in_cpp(arrays: StepArrays, shape: StepShape, level: CppLevel) -> LayerAttention:
    def attend_layer(
        q: Array, k: Array, v: Array, pages: Pages, scored_only: bool
    ) -> tuple[Array, Pages]:
        k, v = mark_in_keys(k, v)
        key_layout, value_layout = page_layouts(k.dtype)
        pages = Pages(
            write_pages(pages.k, k, arrays, key_layout),
            write_pages(pages.v, v, arrays, value_layout),
        )
        seen = attend_cpu(q, k, v, pages, arrays, shape, level=level, scored_only=scored_only)
        return seen, pages

    return attend_layer


def _attention_on_gpu(arrays: StepArrays, shape: StepShape, num_pages: int) -> LayerAttention:
    from itemwise.ops.step.gpu import attend_gpu, lane_walk, page_places, write_places

    walk = lane_walk(arrays, shape)
    places = page_places(arrays, walk, num_pages)

    def attend_layer(
        q: Array, k: Array, v: Array, pages: Pages, scored_only: bool
    ) -> tuple[Array, Pages]:
        k, v = mark_in_keys(k, v)
        pages = Pages(write_places(pages.k, k, places), write_places(pages.v, v, places))
        return attend_gpu(q, k, v, pages, walk, shape), pages

    return attend_layer


def packed_attention(
    arrays: PackedArrays, shape: PackedShape, mask: Mask, kernel: Kernel | None = None
) -> Callable[[Array, Array, Array], Array]:
    """The attention of a packed sequence's layers: takes q, k, v, as `ops/packed/base.py` says.

    On TPU and GPU `segment` is a kernel; `dense` has none, and processors have none for either.
    """
    attend = _packed_backend(shape, mask, kernel)

    def attend_layer(q: Array, k: Array, v: Array) -> Array:
        return attend(q, *mark_in_keys(k, v), arrays)

    return attend_layer


def _packed_backend(
    shape: PackedShape, mask: Mask, kernel: Kernel | None
) -> Callable[[Array, Array, Array, PackedArrays], Array]:
    if mask == "dense":
        return attend_dense
    if kernel == "tpu":
        from itemwise.ops.packed.tpu import attend_packed_tpu  # loads Pallas

        return attend_packed_tpu
    if kernel == "gpu":
        from itemwise.ops.packed.gpu import attend_packed_gpu

        return attend_packed_gpu
    return functools.partial(attend_segment, granule_tokens=shape.granule_tokens)
