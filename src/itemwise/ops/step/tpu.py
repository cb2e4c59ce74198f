"""The exact step's attention as one TPU kernel: own rows and the paged context, fused.

It takes the numbers in the order of the XLA form (`attention.py`), so it keeps the same promise:
rows attend to themselves granule by granule, counted from the row's first token, then to their
context block by block; a masked place is an exact no-op.

A program has one lane and one key/value head with all its query heads. The programs of a head run
one after the other: the first takes the own rows of the whole step into sums that stay in VMEM,
then each adds its lane's context. Pages are copied from HBM block by block, the next while the one
before is computed; the page table is prefetched as scalars.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float, Shaped

from itemwise.ops.packed.tiles import VMEM_BYTES
from itemwise.ops.packed.tpu import LANES, clear_sums, scaled_products, take_in
from itemwise.ops.step.xla import StepLayout, from_storage
from itemwise.types import StepShape

NUM_SLOTS = 2  # blocks of pages in VMEM: one computed, one on its way


def attend_tpu(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    k_pages: Shaped[Array, "P K page H"],
    v_pages: Shaped[Array, "P K page H"],
    layout: StepLayout,
    shape: StepShape,
    interpret: Any = False,
) -> Float[Array, "T N H"]:
    """Attention output of every token place; places outside rows hold finite garbage.

    Args:
        q: queries.
        k: keys of the step's own tokens.
        v: values of the step's own tokens.
        k_pages: the pool's keys, in storage form.
        v_pages: the pool's values, in storage form.
        layout: who sees whom.
        shape: sizes of the step.
        interpret: `pltpu.InterpretParams` to run it on a CPU, for tests.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    group, lane, granule = num_heads // num_kv_heads, shape.lane_tokens, shape.granule_tokens
    padded = num_tokens + granule  # the last granule may reach past the step's end

    def whole(a: Array, axes: tuple[int, ...]) -> Array:
        # In float32, since only 32-bit rows can be read from any place on; no value changes.
        a = a.transpose(axes).astype(jnp.float32)
        return jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, granule), (0, 0)])

    queries = pl.BlockSpec((None, group, padded, head_dim), lambda h, g, *_: (h, 0, 0, 0))
    own = pl.BlockSpec((None, padded, head_dim), lambda h, g, *_: (h, 0, 0))
    hbm = pl.BlockSpec(memory_space=pl.ANY)
    slots = (NUM_SLOTS, shape.block_pages * lane, head_dim)
    scalars = (
        layout.context_pages.reshape(-1),
        layout.context_lens.reshape(-1),
        layout.num_blocks,
        layout.granule_start,
        layout.granule_index,
        layout.num_granules.reshape(1),
    )
    sums = (group, padded, LANES)
    out: Array = pl.pallas_call(
        functools.partial(_kernel, shape=shape, dtype=q.dtype),
        out_shape=jax.ShapeDtypeStruct((num_kv_heads, group, num_tokens, head_dim), q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(num_kv_heads, shape.lanes),
            in_specs=[queries, own, own, hbm, hbm],
            out_specs=pl.BlockSpec((None, group, lane, head_dim), lambda h, g, *_: (h, 0, g, 0)),
            scratch_shapes=[
                pltpu.VMEM(sums, jnp.float32),
                pltpu.VMEM(sums, jnp.float32),
                pltpu.VMEM((group, padded, head_dim), jnp.float32),
                pltpu.VMEM((group * granule, LANES), jnp.float32),
                pltpu.VMEM((group * granule, LANES), jnp.float32),
                pltpu.VMEM((group * granule, head_dim), jnp.float32),
                pltpu.VMEM((group * lane, LANES), jnp.float32),
                pltpu.VMEM((group * lane, LANES), jnp.float32),
                pltpu.VMEM((group * lane, head_dim), jnp.float32),
                pltpu.VMEM(slots, k_pages.dtype),
                pltpu.VMEM(slots, v_pages.dtype),
                pltpu.SemaphoreType.DMA((2, NUM_SLOTS)),
            ],
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
        k_pages,
        v_pages,
    )
    return out.transpose(2, 0, 1, 3).reshape(num_tokens, num_heads, head_dim)


def _kernel(
    context_pages_smem: Any,
    context_lens_smem: Any,
    num_blocks_smem: Any,
    granule_start_smem: Any,
    granule_index_smem: Any,
    num_granules_smem: Any,
    q_vmem: Any,
    k_vmem: Any,
    v_vmem: Any,
    k_pages_hbm: Any,
    v_pages_hbm: Any,
    out_vmem: Any,
    top_vmem: Any,
    weight_vmem: Any,
    total_vmem: Any,
    own_top_vmem: Any,
    own_weight_vmem: Any,
    own_total_vmem: Any,
    lane_top_vmem: Any,
    lane_weight_vmem: Any,
    lane_total_vmem: Any,
    k_slots_vmem: Any,
    v_slots_vmem: Any,
    copied_sem: Any,
    *,
    shape: StepShape,
    dtype: jnp.dtype,
) -> None:
    lane = pl.program_id(1)
    whole_sums = (top_vmem, weight_vmem, total_vmem)
    lane_sums = (lane_top_vmem, lane_weight_vmem, lane_total_vmem)
    head_dim = q_vmem.shape[-1]

    @pl.when(lane == 0)
    def _() -> None:
        clear_sums(*whole_sums)
        own_sums = (own_top_vmem, own_weight_vmem, own_total_vmem)
        granules = (granule_start_smem, granule_index_smem, num_granules_smem)
        _own_rows(granules, (q_vmem, k_vmem, v_vmem), whole_sums, own_sums, shape, dtype)

    here = pl.ds(pl.multiple_of(lane * shape.lane_tokens, shape.lane_tokens), shape.lane_tokens)
    for mine, everyone in zip(lane_sums, whole_sums, strict=True):
        mine[...] = everyone[:, here, :].reshape(mine.shape)
    q = q_vmem[:, here, :].astype(dtype).reshape(-1, head_dim)
    contexts = (context_pages_smem, context_lens_smem, num_blocks_smem[lane])
    pages = ((k_pages_hbm, k_slots_vmem), (v_pages_hbm, v_slots_vmem))
    _context(contexts, pages, copied_sem, q, lane_sums, shape)
    out = lane_total_vmem[...] / jnp.maximum(lane_weight_vmem[:, :1], 1e-30)
    out_vmem[...] = out.astype(dtype).reshape(out_vmem.shape)


def _context(
    contexts: tuple[Any, Any, Array],
    pages: tuple[tuple[Any, Any], tuple[Any, Any]],
    copied_sem: Any,
    q: Float[Array, "rows H"],
    sums: tuple[Any, Any, Any],
    shape: StepShape,
) -> None:
    """Adds the lane's context to its sums; a block is copied while the one before is computed."""
    pages_smem, lens_smem, num_blocks = contexts
    head, lane = pl.program_id(0), pl.program_id(1)
    first = lane * shape.max_context_pages

    def copies(block: Array) -> list[Any]:
        made = []
        for i in range(shape.block_pages):
            page = pages_smem[first + block * shape.block_pages + i]
            into = pl.ds(i * shape.lane_tokens, shape.lane_tokens)
            for which, (hbm, vmem) in enumerate(pages):
                source, target = hbm.at[page, head], vmem.at[slot_of(block), into, :]
                copied = copied_sem.at[which, lax.rem(block, NUM_SLOTS)]
                made.append(pltpu.make_async_copy(source, target, copied))
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
            page_end = i * shape.lane_tokens + lens_smem[first + block * shape.block_pages + i]
            end = jnp.where(place >= i * shape.lane_tokens, page_end, end)
        take_in(jnp.where(place < end, scores, -jnp.inf), v, *sums)

    start(jnp.int32(0))
    lax.fori_loop(0, num_blocks, one_block, None)


def slot_of(block: Array) -> Array:
    """Where in VMEM a block of pages goes."""
    return lax.rem(block, NUM_SLOTS)


def _own_rows(
    granules: tuple[Any, Any, Any],
    inputs: tuple[Any, Any, Any],
    whole_sums: tuple[Any, Any, Any],
    own_sums: tuple[Any, Any, Any],
    shape: StepShape,
    dtype: jnp.dtype,
) -> None:
    """Writes every token's sums over its own row, as `online.own_rows` does."""
    start_smem, index_smem, num_smem = granules
    q_vmem, k_vmem, v_vmem = inputs
    granule, head_dim = shape.granule_tokens, q_vmem.shape[-1]

    def one_granule(n: Array, _: None) -> None:
        start = start_smem[n]
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

        lax.fori_loop(0, index_smem[n] + 1, one_product, None)
        for everyone, mine in zip(whole_sums, own_sums, strict=True):
            size = (everyone.shape[0], granule, everyone.shape[2])
            everyone[:, pl.ds(start, granule), :] = mine[...].reshape(size)

    lax.fori_loop(0, num_smem[0], one_granule, None)
