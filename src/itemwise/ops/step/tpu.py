"""The exact step's attention as one TPU kernel: own rows and the paged context, fused.

It takes the numbers in the order of the XLA form (`xla.py`), so it keeps the same promise:
rows attend to themselves granule by granule, counted from the row's first token, then to their
context block by block; a masked place is an exact no-op.

A program has one lane and one key/value head with all its query heads. The programs of a head run
one after the other: the first takes the own rows of the whole step into sums that stay in VMEM,
then each adds its lane's context. Pages are copied from HBM block by block, the next while the one
before is computed; the page table is prefetched as scalars.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float, Int32

from itemwise.ops.pallas_tpu import (
    VECTOR_LANES,
    VMEM_BYTES,
    clear_sums,
    scaled_products,
    take_in,
)
from itemwise.ops.step.arrays import StepArrays, StepShape
from itemwise.ops.step.base import Pages, from_storage

NUM_SLOTS = 2  # blocks of pages in VMEM: one computed, one on its way


class Scalars(NamedTuple):
    """What says where a program reads, prefetched into SMEM."""

    context_pages: Any
    context_lens: Any
    num_blocks: Any
    granule_start: Any
    granule_index: Any
    num_granules: Any


class Sums(NamedTuple):
    """References to the state of the online softmax, in VMEM."""

    top: Any
    weight: Any
    total: Any


class Scratch(NamedTuple):
    """Memory of the kernel's own.

    Attributes:
        whole: sums of every token place of the step.
        own: sums of the granule that is computed.
        lane: sums of the program's lane.
        k_slots: keys of blocks of pages.
        v_slots: their values.
        copied: semaphores of the copies into the slots.
    """

    whole: Sums
    own: Sums
    lane: Sums
    k_slots: Any
    v_slots: Any
    copied: Any


def attend_tpu(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    pages: Pages,
    arrays: StepArrays,
    shape: StepShape,
    *,
    interpret: Any = False,
) -> Float[Array, "T N H"]:
    """As `StepAttention`. `interpret` may be `pltpu.InterpretParams`, to run without a TPU."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    group, lane, granule = num_heads // num_kv_heads, shape.lane_tokens, shape.granule_tokens
    padded = num_tokens + granule  # the last granule may reach past the step's end

    def whole(a: Array, axes: tuple[int, ...]) -> Array:
        # In float32, since only 32-bit rows can be read from any place on; no value changes.
        a = a.transpose(axes).astype(jnp.float32)
        return jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, granule), (0, 0)])

    scalars = _scalars(arrays, shape)
    queries = pl.BlockSpec((None, group, padded, head_dim), lambda h, g, *_: (h, 0, 0, 0))
    own = pl.BlockSpec((None, padded, head_dim), lambda h, g, *_: (h, 0, 0))
    hbm = pl.BlockSpec(memory_space=pl.ANY)
    out: Array = pl.pallas_call(
        functools.partial(_kernel, shape=shape, dtype=q.dtype),
        out_shape=jax.ShapeDtypeStruct((num_kv_heads, group, num_tokens, head_dim), q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(num_kv_heads, shape.lanes),
            in_specs=[queries, own, own, hbm, hbm],
            out_specs=pl.BlockSpec((None, group, lane, head_dim), lambda h, g, *_: (h, 0, g, 0)),
            scratch_shapes=_scratch(group, padded, pages, shape),
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=interpret,
        name="step_attention",
    )(
        *scalars,
        whole(q.reshape(num_tokens, num_kv_heads, group, head_dim), (1, 2, 0, 3)),
        whole(k, (1, 0, 2)),
        whole(v, (1, 0, 2)),
        *pages,
    )
    return out.transpose(2, 0, 1, 3).reshape(num_tokens, num_heads, head_dim)


def _scalars(arrays: StepArrays, shape: StepShape) -> Scalars:
    num_pages: Int32[Array, " G"] = (arrays.context_lens > 0).sum(1)
    return Scalars(
        context_pages=arrays.context_pages.reshape(-1),
        context_lens=arrays.context_lens.reshape(-1),
        num_blocks=(num_pages + shape.block_pages - 1) // shape.block_pages,
        granule_start=arrays.granule_start,
        granule_index=arrays.granule_index,
        num_granules=arrays.num_granules.reshape(1),
    )


def _scratch(group: int, num_places: int, pages: Pages, shape: StepShape) -> tuple[Any, ...]:
    head_dim = pages.k.shape[-1]

    def sums(*rows: int) -> Sums:
        state = pltpu.VMEM((*rows, VECTOR_LANES), jnp.float32)
        return Sums(state, state, pltpu.VMEM((*rows, head_dim), jnp.float32))

    slots = (NUM_SLOTS, shape.block_pages * shape.lane_tokens, head_dim)
    return Scratch(
        whole=sums(group, num_places),
        own=sums(group * shape.granule_tokens),
        lane=sums(group * shape.lane_tokens),
        k_slots=pltpu.VMEM(slots, pages.k.dtype),
        v_slots=pltpu.VMEM(slots, pages.v.dtype),
        copied=pltpu.SemaphoreType.DMA((2, NUM_SLOTS)),
    )


def _kernel(*refs: Any, shape: StepShape, dtype: jnp.dtype) -> None:
    scalars, refs = Scalars(*refs[: len(Scalars._fields)]), refs[len(Scalars._fields) :]
    (q_vmem, k_vmem, v_vmem, k_pages_hbm, v_pages_hbm, out_vmem), refs = refs[:6], refs[6:]
    scratch = Scratch(*refs)
    lane, head_dim = pl.program_id(1), q_vmem.shape[-1]

    @pl.when(lane == 0)
    def _() -> None:
        clear_sums(*scratch.whole)
        inputs = (q_vmem, k_vmem, v_vmem)
        _own_rows(scalars, inputs, scratch.whole, scratch.own, shape, dtype)

    here = pl.ds(pl.multiple_of(lane * shape.lane_tokens, shape.lane_tokens), shape.lane_tokens)
    for mine, everyone in zip(scratch.lane, scratch.whole, strict=True):
        mine[...] = everyone[:, here, :].reshape(mine.shape)
    q = q_vmem[:, here, :].astype(dtype).reshape(-1, head_dim)
    pages = ((k_pages_hbm, scratch.k_slots), (v_pages_hbm, scratch.v_slots))
    _context(scalars, pages, scratch.copied, q, scratch.lane, shape)
    out = scratch.lane.total[...] / jnp.maximum(scratch.lane.weight[:, :1], 1e-30)
    out_vmem[...] = out.astype(dtype).reshape(out_vmem.shape)


def _context(
    scalars: Scalars,
    pages: tuple[tuple[Any, Any], tuple[Any, Any]],
    copied: Any,
    q: Float[Array, "rows H"],
    sums: Sums,
    shape: StepShape,
) -> None:
    """Adds the lane's context to its sums; a block is copied while the one before is computed."""
    head, lane = pl.program_id(0), pl.program_id(1)
    num_blocks, first = scalars.num_blocks[lane], lane * shape.max_context_pages

    def copies(block: Array) -> list[Any]:
        made = []
        for i in range(shape.block_pages):
            page = scalars.context_pages[first + block * shape.block_pages + i]
            into = pl.ds(i * shape.lane_tokens, shape.lane_tokens)
            for which, (hbm, vmem) in enumerate(pages):
                source, target = hbm.at[page, head], vmem.at[slot_of(block), into, :]
                done = copied.at[which, lax.rem(block, NUM_SLOTS)]
                made.append(pltpu.make_async_copy(source, target, done))
        return made

    def start(block: Array) -> None:
        @pl.when(block < num_blocks)
        def _() -> None:
            for copy in copies(block):
                copy.start()

    def one_block(block: Array, _: None) -> None:
        start(block + 1)
        for copy in copies(block):
            copy.wait()
        k, v = (from_storage(vmem[slot_of(block)], q.dtype) for _, vmem in pages)
        scores = scaled_products(q, k)
        place = lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        end = jnp.zeros_like(place)
        for i in range(shape.block_pages):
            page = i * shape.lane_tokens
            length = scalars.context_lens[first + block * shape.block_pages + i]
            end = jnp.where(place >= page, page + length, end)
        take_in(jnp.where(place < end, scores, -jnp.inf), v, *sums)

    start(jnp.int32(0))
    lax.fori_loop(0, num_blocks, one_block, None)


def slot_of(block: Array) -> Array:
    """Where in VMEM a block of pages goes."""
    return lax.rem(block, NUM_SLOTS)


def _own_rows(
    scalars: Scalars,
    inputs: tuple[Any, Any, Any],
    whole_sums: Sums,
    own_sums: Sums,
    shape: StepShape,
    dtype: jnp.dtype,
) -> None:
    """Writes every token's sums over its own row, as `softmax.own_rows` does."""
    q_vmem, k_vmem, v_vmem = inputs
    granule, head_dim = shape.granule_tokens, q_vmem.shape[-1]

    def one_granule(n: Array, _: None) -> None:
        start = scalars.granule_start[n]
        q = q_vmem[:, pl.ds(start, granule), :].astype(dtype).reshape(-1, head_dim)
        clear_sums(*own_sums)

        def one_product(j: Array, _: None) -> None:
            keys = pl.ds(start - j * granule, granule)
            scores = scaled_products(q, k_vmem[keys, :].astype(dtype))
            reader = lax.broadcasted_iota(jnp.int32, scores.shape, 0) & (granule - 1)
            place = lax.broadcasted_iota(jnp.int32, scores.shape, 1)
            # The nearest granule is causal, earlier ones are seen whole.
            seen = jnp.where(j > 0, granule, reader)
            scores = jnp.where(place <= seen, scores, -jnp.inf)
            take_in(scores, v_vmem[keys, :].astype(dtype), *own_sums)

        lax.fori_loop(0, scalars.granule_index[n] + 1, one_product, None)
        for everyone, mine in zip(whole_sums, own_sums, strict=True):
            size = (everyone.shape[0], granule, everyone.shape[2])
            everyone[:, pl.ds(start, granule), :] = mine[...].reshape(size)

    lax.fori_loop(0, scalars.num_granules[0], one_granule, None)
