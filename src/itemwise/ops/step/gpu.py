"""The exact step on NVIDIA GPUs: its attention as one kernel, own rows and paged context fused.

Pallas hands it to Triton. It has the meaning of the XLA form (`xla.py`), and keeps the same
promise: a query meets the keys of its own row granule by granule, counted from the row's first
token, then its context from the beginning; a masked place is an exact no-op.

A program has the places of one lane and one query head, and keeps their sums in registers. It walks
the granules of every row that reaches into the lane; a query takes in those of its own row, and of
others nothing. Where no row is longer than a granule, as with most items, it takes several granules
in at once: of each row just one is among them, so its sums are those of one by one. Then it walks
the lane's pages. Programs of lanes that are not in use walk nothing.

Nothing here is a loop of XLA, at each turn of which a GPU would wait for the host: what depends on
the layout is computed for all places at once, and pages are written by a scatter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Float, Int32, Shaped

from itemwise.ops.pallas_gpu import NUM_STAGES, NUM_WARPS, divided, no_sums, take_in
from itemwise.ops.softmax import SoftmaxState
from itemwise.ops.step.arrays import StepArrays, StepShape
from itemwise.ops.step.base import Pages, from_storage, to_storage

CONTEXT_KEYS = 128  # context tokens of one product
OWN_GRANULES = 2  # granules of one product, where no row has more than one


class LaneWalk(NamedTuple):
    """What each lane's programs walk, made of the step's arrays once a step."""

    row_start: Int32[Array, " T"]  # first place of the row that has a place
    granule_start: Int32[Array, " granules"]
    granule_row: Int32[Array, " granules"]  # first place of the granule's row
    lane_start: Int32[Array, " G"]
    lane_end: Int32[Array, " G"]  # places from here on belong to the next lane, or to none
    first_granule: Int32[Array, " G"]
    end_granule: Int32[Array, " G"]
    one_by_one: Int32[Array, " G"]  # 1 if a row of the lane has several granules
    context_pages: Int32[Array, "G C"]
    context_lens: Int32[Array, "G C"]
    num_full_pages: Int32[Array, " G"]  # at the beginning of the context, without a gap
    num_pages: Int32[Array, " G"]


def lane_walk(arrays: StepArrays, shape: StepShape) -> LaneWalk:
    """Which granules and pages each lane's programs walk."""
    granules, lanes = arrays.granule_start.shape[0], arrays.lane_start.shape[0]
    in_use = jnp.arange(granules) < arrays.num_granules
    granule_start = jnp.where(in_use, arrays.granule_start, shape.tokens)
    granule_row = granule_start - arrays.granule_index * shape.granule_tokens
    before = _search(granule_start, jnp.arange(shape.tokens), "right")
    row_start = granule_row[jnp.maximum(before - 1, 0)]

    lane = jnp.arange(lanes)
    used = lane < arrays.num_lanes
    end = jnp.minimum(arrays.lane_start + shape.lane_tokens, shape.tokens)
    following = jnp.where(lane + 1 < arrays.num_lanes, jnp.roll(arrays.lane_start, -1), end)
    lane_end = jnp.where(used, jnp.minimum(end, following), 0)
    first = _search(granule_start, row_start[arrays.lane_start], "left")
    end_granule = _search(granule_start, lane_end, "left")
    granule = jnp.arange(granules)[None]
    walked = (granule >= first[:, None]) & (granule < end_granule[:, None])
    long_row = in_use & (arrays.granule_index > 0)
    slots = arrays.context_lens.shape[1]
    part_full = arrays.context_lens < shape.page_tokens
    num_full = jnp.where(part_full, jnp.arange(slots)[None], slots).min(1)
    return LaneWalk(
        row_start,
        granule_start,
        granule_row,
        arrays.lane_start,
        lane_end,
        jnp.where(used, first, 0),
        jnp.where(used, end_granule, 0),
        (walked & long_row[None]).any(1).astype(jnp.int32),
        arrays.context_pages,
        arrays.context_lens,
        jnp.where(used, num_full, 0),
        jnp.where(used, (arrays.context_lens > 0).sum(1), 0),
    )


class PagePlaces(NamedTuple):
    """Where the keys and values of each token place go, made of the step's arrays once a step."""

    page: Int32[Array, " T"]  # past all pages for a place whose row is not kept
    slot: Int32[Array, " T"]


def page_places(arrays: StepArrays, walk: LaneWalk, num_pages: int) -> PagePlaces:
    """Where in the pool each token place is kept, if at all."""
    in_use = jnp.arange(arrays.write_starts.shape[0]) < arrays.num_writes
    mine = (walk.row_start[:, None] == arrays.write_starts[None]) & in_use[None]
    place = jnp.arange(walk.row_start.shape[0])
    # Past all pages where nothing is kept, each in another page, as a scatter may ask for.
    page = jnp.where(mine, arrays.write_pages[None], (num_pages + place)[:, None]).min(1)
    return PagePlaces(page, place - walk.row_start)


def write_places(
    pool: Shaped[Array, "P K page H"], new: Float[Array, "T K H"], places: PagePlaces
) -> Shaped[Array, "P K page H"]:
    """The pool with the keys or values of rows that are kept in their pages, updated in place."""
    kept = pool.at[places.page, :, places.slot, :]
    written: Array = kept.set(to_storage(new), mode="drop", unique_indices=True)
    return written


def _search(a: Array, values: Array, side: str) -> Array:
    """`searchsorted` by comparing all pairs: no loop, which would wait for the host."""
    found: Array = jnp.searchsorted(a, values, side=side, method="compare_all")
    return found


def attend_gpu(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    pages: Pages,
    walk: LaneWalk,
    shape: StepShape,
    *,
    interpret: bool = False,
) -> Float[Array, "T N H"]:
    """As `StepAttention`, with the walk that was made of the arrays in their place.

    H must be a power of two, at least 16. With `interpret` it runs without a GPU, for tests.
    """
    group, context_keys = q.shape[1] // k.shape[1], min(CONTEXT_KEYS, shape.page_tokens)

    def kernel(*refs: Any) -> None:
        lanes, others = refs[: len(walk)], refs[len(walk) :]
        _kernel(LaneWalk(*lanes), *others, group=group, shape=shape, context_keys=context_keys)

    attended: Array = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(shape.lanes, q.shape[1]),
        compiler_params=plgpu.CompilerParams(num_warps=NUM_WARPS, num_stages=NUM_STAGES),
        # Over the queries: what no lane has must not be memory that nobody wrote.
        input_output_aliases={len(walk): 0},
        interpret=interpret,
        name="step_attention",
    )(*walk, q, k, v, *(from_storage(stored, q.dtype) for stored in pages))
    return attended


def _kernel(
    walk: LaneWalk,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    k_pages_ref: Any,
    v_pages_ref: Any,
    out_ref: Any,
    *,
    group: int,
    shape: StepShape,
    context_keys: int,
) -> None:
    lane, head = pl.program_id(0), pl.program_id(1)
    kv_head = lax.div(head, group)
    start, end = walk.lane_start[lane], walk.lane_end[lane]
    # A window of the lane's length that ends within the step; where it begins moves no bit.
    window = jnp.minimum(start, shape.tokens - shape.lane_tokens)
    here = pl.ds(window, shape.lane_tokens)
    q, rows = q_ref[here, head, :], walk.row_start[here]
    place = window + jnp.arange(shape.lane_tokens)

    first, last = walk.first_granule[lane], walk.end_granule[lane]

    def own_granules(first: Array, count: int, sums: SoftmaxState) -> SoftmaxState:
        piece = jnp.arange(count * shape.granule_tokens)
        granule = first + lax.div(piece, shape.granule_tokens)
        there = granule < last
        granule = jnp.where(there, granule, 0)
        key = walk.granule_start[granule] + lax.rem(piece, shape.granule_tokens)
        of_row = (rows[:, None] == walk.granule_row[granule][None, :]) & there[None, :]
        at = jnp.minimum(key, shape.tokens - 1)  # a granule may reach past the step's end
        visible = of_row & (key[None, :] <= place[:, None])
        return take_in(sums, q, k_ref[at, kv_head, :], v_ref[at, kv_head, :], visible)

    def one_granule(n: Array, sums: SoftmaxState) -> SoftmaxState:
        return own_granules(n, 1, sums)

    def some_granules(n: Array, sums: SoftmaxState) -> SoftmaxState:
        return own_granules(first + n * OWN_GRANULES, OWN_GRANULES, sums)

    blocks = shape.page_tokens // context_keys

    def context(n: Array) -> tuple[Array, Array, Array]:
        slot, begin = lax.div(n, blocks), lax.rem(n, blocks) * context_keys
        page, keys = walk.context_pages[lane, slot], pl.ds(begin, context_keys)
        valid = begin + jnp.arange(context_keys) < walk.context_lens[lane, slot]
        return k_pages_ref[page, kv_head, keys, :], v_pages_ref[page, kv_head, keys, :], valid

    def full_block(n: Array, sums: SoftmaxState) -> SoftmaxState:
        k, v, _ = context(n)
        return take_in(sums, q, k, v)

    def any_block(n: Array, sums: SoftmaxState) -> SoftmaxState:
        k, v, valid = context(n)
        return take_in(sums, q, k, v, valid[None, :])

    one_by_one = walk.one_by_one[lane] > 0
    batches = jnp.where(one_by_one, 0, lax.div(last - first + OWN_GRANULES - 1, OWN_GRANULES))
    full = walk.num_full_pages[lane] * blocks
    sums = lax.fori_loop(0, batches, some_granules, no_sums(q.shape))
    sums = lax.fori_loop(jnp.where(one_by_one, first, last), last, one_granule, sums)
    sums = lax.fori_loop(0, full, full_block, sums)
    sums = lax.fori_loop(full, walk.num_pages[lane] * blocks, any_block, sums)
    mine = (place >= start) & (place < end)
    plgpu.store(out_ref.at[here, head, :], divided(sums).astype(q.dtype), mask=mine[:, None])
