from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemwise.packing import StepPacker
from itemwise.types import Context, RowPlan, StepBatch, StepShape

SHAPE = StepShape(
    lanes=3, lane_tokens=16, page_tokens=16, granule_tokens=4, block_pages=2, max_context_pages=4
)
CONTEXTS = [Context(), Context((3,), (7,)), Context((3, 4, 9), (16, 16, 2))]


def pack(rows: list[RowPlan], smaller: Sequence[StepShape] = ()) -> list[StepBatch]:
    packer, batches = StepPacker(SHAPE, smaller), []
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


@given(row_plans())
def test_every_row_is_placed_once_in_order_with_its_context(rows: list[RowPlan]) -> None:
    batches = pack(rows)
    seen = []
    for batch in batches:
        starts = batch.granule_start[: batch.num_granules].tolist()
        assert starts == sorted(set(starts))
        for n, start in enumerate(starts):
            if batch.granule_index[n] == 0:
                seen.append((batch, start))
    assert len(seen) == len(rows)
    for row, (batch, start) in zip(rows, seen, strict=True):
        end = start + len(row.tokens)
        assert batch.tokens[start:end].tolist() == list(row.tokens)
        expected = np.arange(row.first_position, row.first_position + len(row.tokens))
        assert batch.positions[start:end].tolist() == expected.tolist()
        for lane in range(start // SHAPE.lane_tokens, -(-end // SHAPE.lane_tokens)):
            num_slots = len(row.context.pages)
            assert batch.context_pages[lane, :num_slots].tolist() == list(row.context.pages)
            assert batch.context_lens[lane, :num_slots].tolist() == list(row.context.lens)
            assert not batch.context_lens[lane, num_slots:].any()
            assert batch.num_blocks[lane] == -(-num_slots // SHAPE.block_pages)


@given(row_plans())
def test_scores_and_writes_point_at_their_rows(rows: list[RowPlan]) -> None:
    scored: dict[int, int] = {}
    written: dict[int, int] = {}
    for batch in pack(rows):
        for i, score_id in enumerate(batch.score_ids):
            scored[score_id] = int(batch.tokens[batch.score_tokens[i]])
        for lane, page in zip(
            batch.write_lanes[: batch.num_writes],
            batch.write_pages[: batch.num_writes],
            strict=True,
        ):
            written[int(page)] = int(batch.tokens[lane * SHAPE.lane_tokens])
    assert scored == {r.score_id: r.tokens[-1] for r in rows if r.score_id is not None}
    assert written == {r.write_page: r.tokens[0] for r in rows if r.write_page is not None}


@given(row_plans())
def test_nobody_shares_the_lane_of_a_writing_row(rows: list[RowPlan]) -> None:
    for batch in pack(rows):
        owners: dict[int, int] = {}
        for n in range(int(batch.num_granules)):
            if batch.granule_index[n] == 0:
                lane = int(batch.granule_start[n]) // SHAPE.lane_tokens
                owners[lane] = owners.get(lane, 0) + 1
        for lane in batch.write_lanes[: batch.num_writes]:
            assert owners[int(lane)] == 1


def test_rows_of_one_context_leave_no_gap_and_straddle_lanes() -> None:
    rows = [RowPlan(range(10), 0, CONTEXTS[1], score_id=i) for i in range(4)]
    (batch,) = pack(rows)
    assert batch.num_tokens == 40
    assert batch.score_tokens[:4].tolist() == [9, 19, 29, 39]
    assert batch.num_blocks.tolist() == [1, 1, 1]


def test_lanes_of_one_step_may_have_different_contexts() -> None:
    rows = [RowPlan(range(3), 0, context, score_id=0) for context in CONTEXTS]
    (batch,) = pack(rows)
    assert batch.score_tokens[:3].tolist() == [2, 18, 34]
    assert batch.num_blocks.tolist() == [0, 1, 2]


def test_scored_rows_of_a_step_are_bounded() -> None:
    rows = [RowPlan([1], 0, Context(), score_id=i) for i in range(SHAPE.max_rows + 1)]
    assert [len(batch.score_ids) for batch in pack(rows)] == [SHAPE.max_rows, 1]


def test_granules_of_the_shortest_rows_fit() -> None:
    packer = StepPacker(replace(SHAPE, lane_tokens=64, page_tokens=64))
    for i in range(38):
        packer.add(RowPlan(range(5), 0, Context(), score_id=i))
    batch = packer.take()
    assert batch.num_granules == 76


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


def test_rest_of_the_open_lane_takes_rows_of_its_context_alone() -> None:
    packer = StepPacker(SHAPE)
    same, other = CONTEXTS[1], CONTEXTS[2]
    assert packer.lane_room == 0
    packer.add(RowPlan([1] * 10, 7, same, score_id=0))
    assert packer.lane_room == 6
    assert packer.fits_lane(RowPlan([1] * 6, 7, same, score_id=1))
    assert not packer.fits_lane(RowPlan([1] * 7, 7, same, score_id=1))
    assert not packer.fits_lane(RowPlan([1] * 6, 7, other, score_id=1))
    packer.add(RowPlan([1] * 6, 7, same, score_id=1))
    assert packer.lane_room == 0
    packer.add(RowPlan([1] * 4, 7, same, write_page=3))
    assert packer.lane_room == 0
    assert not packer.is_full
    packer.add(RowPlan([1] * 16, 7, same, score_id=2))
    assert packer.is_full
    assert packer.take().num_lanes == 3


SMALLER = [replace(SHAPE, lanes=n, lane_tokens=8) for n in (2, 3)]


@given(row_plans())
def test_small_steps_hold_the_same_rows(rows: list[RowPlan]) -> None:
    large, small = pack(rows), pack(rows, SMALLER)
    assert len(large) == len(small)
    for one, other in zip(large, small, strict=True):
        assert other.shape in (SHAPE, *SMALLER)
        assert other.shape.tokens >= other.num_tokens
        assert one.score_ids == other.score_ids
        count = len(one.score_ids)
        for batch in (one, other):
            places = batch.score_tokens[:count]
            assert (batch.tokens[places] == one.tokens[one.score_tokens[:count]]).all()
            assert (batch.positions[places] == one.positions[one.score_tokens[:count]]).all()
            lanes = places // batch.shape.lane_tokens
            mine = one.score_tokens[:count] // SHAPE.lane_tokens
            assert (batch.context_pages[lanes] == one.context_pages[mine]).all()
            assert (batch.context_lens[lanes] == one.context_lens[mine]).all()
        assert other.num_writes == one.num_writes
        assert other.write_pages[: one.num_writes].tolist() == (
            one.write_pages[: one.num_writes].tolist()
        )


def test_a_step_is_as_small_as_its_rows_allow() -> None:
    def taken(*rows: RowPlan) -> StepShape:
        (batch,) = pack(list(rows), SMALLER)
        return batch.shape

    def row(count: int, context: int = 1) -> RowPlan:
        return RowPlan(range(count), 0, CONTEXTS[context], score_id=0)

    assert taken(row(3)) == SMALLER[0]
    assert taken(row(16)) == SMALLER[0]  # over two lanes of one context
    assert taken(row(9), row(3, context=2)) == SMALLER[1]
    assert taken(row(9), row(9, context=2)) == SHAPE  # four lanes of 8
    assert taken(RowPlan(range(8), 0, Context(), write_page=1)) == SMALLER[0]
    assert taken(RowPlan(range(9), 0, Context(), write_page=1)) == SHAPE  # one lane writes a page
