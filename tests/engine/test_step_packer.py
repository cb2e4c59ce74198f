from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemwise.engine.step_packer import Context, RowPlan, StepBatch, StepPacker
from itemwise.ops.step.arrays import StepShape

TILED = StepShape(
    tokens=48,
    lanes=3,
    lane_tokens=16,
    lane_alignment=16,
    page_tokens=16,
    granule_tokens=4,
    block_pages=2,
    max_context_pages=4,
)
SHAPE = replace(TILED, lanes=12, lane_alignment=1)
CONTEXTS = [Context(), Context((3,), (7,)), Context((3, 4, 9), (16, 16, 2))]


def pack(
    rows: list[RowPlan], smaller: Sequence[StepShape] = (), shape: StepShape = SHAPE
) -> list[StepBatch]:
    packer, batches = StepPacker(shape, smaller), []
    for row in rows:
        if not packer.fits(row):
            batches.append(packer.take())
        packer.add(row)
    if packer:
        batches.append(packer.take())
    return batches


@st.composite
def row_plans(draw: st.DrawFn) -> list[RowPlan]:
    rows = []
    for i in range(draw(st.integers(1, 30))):
        num_tokens = draw(st.integers(1, SHAPE.lane_tokens))
        writes = draw(st.integers(0, 4)) == 0
        rows.append(
            RowPlan(
                tokens=[100 * i + j for j in range(num_tokens)],
                first_position=draw(st.integers(0, 50)),
                context=draw(st.sampled_from(CONTEXTS)),
                write_page=20 + i if writes else None,
                score_id=None if writes else i,
            )
        )
    return rows


def lanes_at(batch: StepBatch, places: range) -> set[int]:
    """The lanes to which places belong: the last that begins there or before."""
    starts = batch.arrays.lane_start[: batch.arrays.num_lanes]
    return {int(np.searchsorted(starts, place, "right")) - 1 for place in places}


@pytest.mark.parametrize("shape", [SHAPE, TILED])
@given(rows=row_plans())
def test_every_row_is_placed_once_in_order_with_its_context(
    rows: list[RowPlan], shape: StepShape
) -> None:
    batches = pack(rows, shape=shape)
    seen = []
    for batch in batches:
        starts = batch.arrays.granule_start[: batch.arrays.num_granules].tolist()
        assert starts == sorted(set(starts))
        for n, start in enumerate(starts):
            if batch.arrays.granule_index[n] == 0:
                seen.append((batch, start))
    assert len(seen) == len(rows)
    for row, (batch, start) in zip(rows, seen, strict=True):
        end = start + len(row.tokens)
        assert batch.arrays.tokens[start:end].tolist() == list(row.tokens)
        expected = np.arange(row.first_position, row.first_position + len(row.tokens))
        assert batch.arrays.positions[start:end].tolist() == expected.tolist()
        for lane in lanes_at(batch, range(start, end)):
            assert batch.arrays.lane_start[lane] + shape.lane_tokens > start
            assert batch.arrays.lane_start[lane] % shape.lane_alignment == 0
            num_slots = len(row.context.pages)
            assert batch.arrays.context_pages[lane, :num_slots].tolist() == list(row.context.pages)
            assert batch.arrays.context_lens[lane, :num_slots].tolist() == list(row.context.lens)
            assert not batch.arrays.context_lens[lane, num_slots:].any()
    for batch in batches:
        starts = batch.arrays.lane_start[: batch.arrays.num_lanes]
        assert (np.diff(starts) > 0).all()
        if shape is TILED:  # whose lanes lie side by side
            assert (starts == np.arange(len(starts)) * shape.lane_tokens).all()


@given(row_plans())
def test_places_of_a_lane_reach_to_the_next(rows: list[RowPlan]) -> None:
    """No token lies past the end of its lane: its places would keep no result."""
    for batch in pack(rows):
        for place in np.flatnonzero(batch.arrays.tokens):
            (lane,) = lanes_at(batch, range(place, place + 1))
            assert place < batch.arrays.lane_start[lane] + SHAPE.lane_tokens


@given(row_plans())
def test_scores_and_writes_point_at_their_rows(rows: list[RowPlan]) -> None:
    scored: dict[int, int] = {}
    written: dict[int, int] = {}
    for batch in pack(rows):
        for i, score_id in enumerate(batch.score_ids):
            scored[score_id] = int(batch.arrays.tokens[batch.arrays.score_tokens[i]])
        for start, page in zip(
            batch.arrays.write_starts[: batch.arrays.num_writes],
            batch.arrays.write_pages[: batch.arrays.num_writes],
            strict=True,
        ):
            written[int(page)] = int(batch.arrays.tokens[start])
    assert scored == {r.score_id: r.tokens[-1] for r in rows if r.score_id is not None}
    assert written == {r.write_page: r.tokens[0] for r in rows if r.write_page is not None}


def test_rows_of_one_context_leave_no_gap_and_straddle_lanes() -> None:
    rows = [RowPlan(range(10), 0, CONTEXTS[1], score_id=i) for i in range(4)]
    (batch,) = pack(rows)
    assert batch.num_tokens == batch.arrays.num_places == 40
    assert batch.arrays.score_tokens[:4].tolist() == [9, 19, 29, 39]
    assert batch.arrays.lane_start[: batch.arrays.num_lanes].tolist() == [0, 16, 32]


@pytest.mark.parametrize(
    ("shape", "starts", "places"), [(SHAPE, [0, 3, 6], 9), (TILED, [0, 16, 32], 48)]
)
def test_lanes_of_one_step_may_have_different_contexts(
    shape: StepShape, starts: list[int], places: int
) -> None:
    rows = [RowPlan(range(3), 0, context, score_id=0) for context in CONTEXTS]
    (batch,) = pack(rows, shape=shape)
    assert batch.arrays.lane_start[: batch.arrays.num_lanes].tolist() == starts
    assert batch.arrays.score_tokens[:3].tolist() == [start + 2 for start in starts]
    assert batch.arrays.num_places == places


def test_lanes_and_writes_of_a_step_are_bounded() -> None:
    shape = replace(SHAPE, lanes=2)
    contexts = [RowPlan([1], 0, context, score_id=0) for context in CONTEXTS]
    assert [int(b.arrays.num_lanes) for b in pack(contexts, shape=shape)] == [2, 1]
    writes = [RowPlan([1], 0, Context(), write_page=i) for i in (1, 2, 3)]
    assert [int(b.arrays.num_writes) for b in pack(writes, shape=shape)] == [2, 1]


def test_scored_rows_of_a_step_are_bounded() -> None:
    rows = [RowPlan([1], 0, Context(), score_id=i) for i in range(SHAPE.max_scored_rows + 1)]
    assert [len(batch.score_ids) for batch in pack(rows)] == [SHAPE.max_scored_rows, 1]


def test_granules_of_the_shortest_rows_fit() -> None:
    packer = StepPacker(replace(SHAPE, tokens=192, lane_tokens=64, page_tokens=64))
    for i in range(38):
        packer.add(RowPlan(range(5), 0, Context(), score_id=i))
    batch = packer.take()
    assert batch.arrays.num_granules == 76


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (RowPlan(range(17), 0, Context()), "17 tokens, at most 16"),
        (RowPlan([1], 0, Context((1,) * 5, (16,) * 5)), "5 pages, at most 4"),
    ],
)
def test_rows_beyond_the_shape_are_refused(row: RowPlan, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepPacker(SHAPE).fits(row)


def test_rest_of_a_tile_takes_rows_of_its_context_alone() -> None:
    packer = StepPacker(TILED)
    same, other = CONTEXTS[1], CONTEXTS[2]
    assert packer.lane_room == 0
    packer.add(RowPlan([1] * 10, 7, same, score_id=0))
    assert packer.lane_room == 6
    assert packer.fits_lane(RowPlan([1] * 6, 7, same, score_id=1))
    assert not packer.fits_lane(RowPlan([1] * 7, 7, same, score_id=1))
    assert not packer.fits_lane(RowPlan([1] * 6, 7, other, score_id=1))
    packer.add(RowPlan([1] * 6, 7, same, score_id=1))
    assert packer.lane_room == 0
    packer.add(RowPlan([1] * 4, 7, other, write_page=3))
    assert packer.lane_room == 12
    assert not packer.is_full
    packer.add(RowPlan([1] * 16, 7, same, score_id=2))
    assert packer.is_full
    batch = packer.take()
    assert batch.arrays.num_lanes == 3
    assert batch.arrays.num_places == 48


def test_lanes_that_begin_anywhere_keep_nobody_out() -> None:
    packer = StepPacker(SHAPE)
    packer.add(RowPlan([1] * 10, 7, CONTEXTS[1], score_id=0))
    assert packer.lane_room == 0


SMALLER = [replace(SHAPE, tokens=n, lanes=4, lane_tokens=8) for n in (16, 24)]


@given(row_plans())
def test_small_steps_hold_the_same_rows(rows: list[RowPlan]) -> None:
    large, small = pack(rows), pack(rows, SMALLER)
    assert len(large) == len(small)
    for one, other in zip(large, small, strict=True):
        assert other.shape in (SHAPE, *SMALLER)
        assert other.shape.tokens >= other.num_tokens
        count = other.shape.tokens
        assert (other.arrays.tokens == one.arrays.tokens[:count]).all()
        assert (other.arrays.positions == one.arrays.positions[:count]).all()
        assert other.score_ids == one.score_ids
        scored = len(one.score_ids)
        assert (other.arrays.score_tokens[:scored] == one.arrays.score_tokens[:scored]).all()
        granules = int(one.arrays.num_granules)
        assert other.arrays.num_granules == granules
        assert (other.arrays.granule_start[:granules] == one.arrays.granule_start[:granules]).all()
        assert (other.arrays.granule_index[:granules] == one.arrays.granule_index[:granules]).all()
        for place in np.flatnonzero(one.arrays.tokens):
            (mine,), (theirs,) = (lanes_at(b, range(place, place + 1)) for b in (one, other))
            assert (other.arrays.context_pages[theirs] == one.arrays.context_pages[mine]).all()
            assert (other.arrays.context_lens[theirs] == one.arrays.context_lens[mine]).all()
        writes = int(one.arrays.num_writes)
        assert other.arrays.num_writes == writes
        assert (other.arrays.write_starts[:writes] == one.arrays.write_starts[:writes]).all()
        assert (other.arrays.write_pages[:writes] == one.arrays.write_pages[:writes]).all()


def test_a_step_is_as_small_as_its_rows_allow() -> None:
    def taken(*rows: RowPlan) -> StepShape:
        (batch,) = pack(list(rows), SMALLER)
        return batch.shape

    def row(count: int, context: int = 1) -> RowPlan:
        return RowPlan(range(count), 0, CONTEXTS[context], score_id=0)

    assert taken(row(3)) == SMALLER[0]
    assert taken(row(16)) == SMALLER[0]  # over two lanes of one context
    assert taken(row(9), row(3, context=2)) == SMALLER[0]
    assert taken(row(9), row(9, context=2)) == SMALLER[1]
    assert taken(row(9), row(16, context=2)) == SHAPE
    assert taken(RowPlan(range(9), 0, Context(), write_page=1)) == SMALLER[0]
    # Five lanes in 15 places, where a small step has four.
    assert taken(*(row(3, context=i % 2 + 1) for i in range(5))) == SHAPE
