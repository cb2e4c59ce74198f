"""Rows into lanes into steps. Plain NumPy: knows shapes, not models.

Rows keep their order, so a row may read a page that an earlier row writes: that row runs in the
same step or in an earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from itemwise.ops.step.arrays import StepArrays, StepShape
from itemwise.types import Int32Array, Tokens

NULL_PAGE = 0  # always zeros; what an unused context slot reads


@dataclass(frozen=True)
class Context:
    """What a row sees before itself: pages in order, and how many tokens of each are valid."""

    pages: tuple[int, ...] = ()
    lens: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class RowPlan:
    """A run of at most a page's tokens that sees a context and, causally, itself.

    Attributes:
        tokens: token ids, at least one and at most a page's.
        first_position: position of the first token in its sequence.
        context: the pages it reads.
        write_page: page that receives its keys and values, or None.
        score_id: the caller's name for the row whose last token is scored, or None.
    """

    tokens: Tokens
    first_position: int
    context: Context
    write_page: int | None = None
    score_id: int | None = None


@dataclass
class StepBatch:
    """A packed step, as the host sees it.

    Attributes:
        shape: sizes of the step.
        arrays: what the device gets.
        score_ids: the `score_id` of each scored row, in the order of `score_tokens`.
        num_tokens: tokens in use.
    """

    shape: StepShape
    arrays: StepArrays
    score_ids: list[int] = field(default_factory=list)
    num_tokens: int = 0


class StepPacker:
    """Fills steps with rows, densely: rows that share a context follow without a gap.

    Such rows may straddle lanes of one context; a row never straddles two steps. A new context
    starts a new lane, at the next place that the alignment of lanes allows.

        packer = StepPacker(shape)
        for row in rows:
            if not packer.fits(row):
                run(packer.take())
            packer.add(row)
        if packer:
            run(packer.take())

    Args:
        shape: sizes of the step.
        smaller: sizes of smaller steps, ascending; a step whose rows fit one of them shrinks to it.
    """

    def __init__(self, shape: StepShape, smaller: Sequence[StepShape] = ()) -> None:
        self._shape = shape
        self._smaller = smaller
        self._max_scored_rows = shape.max_scored_rows
        self._start_step()

    def _start_step(self) -> None:
        self._rows: list[RowPlan] = []
        self._row_starts: list[int] = []
        self._lanes: list[tuple[int, Context]] = []
        self._score_ids: list[int] = []
        self._num_writes = 0
        self._place = 0  # next free token place
        self._lane_end = 0  # of the last lane
        self._context: Context | None = None  # of the last lane

    def __bool__(self) -> bool:
        """Whether a row waits in the step."""
        return self._place > 0

    @property
    def is_full(self) -> bool:
        """Whether no scored row, however short, fits any more."""
        full = len(self._score_ids) == self._max_scored_rows
        return full or self._place == self._shape.tokens

    @property
    def lane_room(self) -> int:
        """Token places after the last row that no row of another context can take."""
        return -self._place % self._shape.lane_alignment

    def fits_lane(self, row: RowPlan) -> bool:
        """Whether `add` can take the row where no row of another context could go."""
        shares = row.context == self._context
        return shares and len(row.tokens) <= self.lane_room and self.fits(row)

    def fits(self, row: RowPlan) -> bool:
        """Whether `add` can take the row into this step; an empty large step takes any row."""
        shape, num_tokens = self._shape, len(row.tokens)
        if num_tokens > shape.page_tokens:
            raise ValueError(f"`row` has {num_tokens} tokens, at most {shape.page_tokens}")
        if len(row.context.pages) > shape.max_context_pages:
            raise ValueError(
                f"`row` reads {len(row.context.pages)} pages, at most {shape.max_context_pages}"
            )
        if row.score_id is not None and len(self._score_ids) == self._max_scored_rows:
            return False
        if row.write_page is not None and self._num_writes == shape.lanes:
            return False
        start, new_lanes = self._placing(row)
        fits = start + num_tokens <= shape.tokens
        return fits and len(self._lanes) + len(new_lanes) <= shape.lanes

    def _placing(self, row: RowPlan) -> tuple[int, range]:
        """Where the row would begin, and the first places of lanes that it would open.

        It begins here if it shares the last lane's context, else in a lane of its own.
        """
        if row.context is self._context or row.context == self._context:
            start, first = self._place, self._lane_end
        else:
            start = first = self._place + self.lane_room
        return start, range(first, start + len(row.tokens), self._shape.lane_tokens)

    def add(self, row: RowPlan) -> None:
        """Places the row. Only after `fits`, which is not asked again: a step has many rows."""
        start, new_lanes = self._placing(row)
        for lane_start in new_lanes:
            self._lanes.append((lane_start, row.context))
            self._lane_end = lane_start + self._shape.lane_tokens
        if row.score_id is not None:
            self._score_ids.append(row.score_id)
        self._num_writes += row.write_page is not None
        self._rows.append(row)
        self._row_starts.append(start)
        self._place, self._context = start + len(row.tokens), row.context

    def take(self) -> StepBatch:
        """The step as it stands, as small as may be; the packer starts an empty one."""
        num_tokens = sum(len(row.tokens) for row in self._rows)
        for shape in self._smaller:
            small = StepPacker(shape)
            if num_tokens <= shape.tokens and small._add_all(self._rows):
                self._start_step()
                return small._finish()
        return self._finish()

    def _add_all(self, rows: Sequence[RowPlan]) -> bool:
        """Places the rows; False if one does not fit."""
        for row in rows:
            if not self.fits(row):
                return False
            self.add(row)
        return True

    def _finish(self) -> StepBatch:
        """The arrays of the rows that were added; all at once, as there may be a thousand."""
        arrays, rows, granule = _empty_arrays(self._shape), self._rows, self._shape.granule_tokens
        starts = np.asarray(self._row_starts, np.int32)
        lengths = np.fromiter((len(row.tokens) for row in rows), np.int32, len(rows))
        positions = np.fromiter((row.first_position for row in rows), np.int32, len(rows))
        of_row, within = _spread(lengths)
        places = starts[of_row] + within
        arrays.tokens[places] = np.concatenate([row.tokens for row in rows]) if rows else ()
        arrays.positions[places] = positions[of_row] + within
        of_row, index = _spread(-(-lengths // granule))
        arrays.granule_index[: len(index)] = index
        arrays.granule_start[: len(index)] = starts[of_row] + index * granule
        for lane, (start, context) in enumerate(self._lanes):
            arrays.lane_start[lane] = start
            arrays.context_pages[lane, : len(context.pages)] = context.pages
            arrays.context_lens[lane, : len(context.pages)] = context.lens
        written = [i for i, row in enumerate(rows) if row.write_page is not None]
        arrays.write_starts[: len(written)] = starts[written]
        arrays.write_pages[: len(written)] = [rows[i].write_page for i in written]
        scored = [i for i, row in enumerate(rows) if row.score_id is not None]
        arrays.score_tokens[: len(scored)] = (starts + lengths - 1)[scored]
        arrays = arrays._replace(
            num_lanes=np.asarray(len(self._lanes), np.int32),
            num_writes=np.asarray(len(written), np.int32),
            num_granules=np.asarray(len(index), np.int32),
            num_scored=np.asarray(len(scored), np.int32),
            num_places=np.asarray(self._place + self.lane_room, np.int32),
        )
        batch = StepBatch(self._shape, arrays, self._score_ids, int(lengths.sum()))
        self._start_step()
        return batch


def _spread(counts: Int32Array) -> tuple[Int32Array, Int32Array]:
    """For each of so many things of each owner, its owner and its number among the owner's.

    Counts (2, 0, 1) give owners (0, 0, 2) and numbers (0, 1, 0).
    """
    owner = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    first = np.cumsum(counts, dtype=np.int32) - counts
    return owner, np.arange(len(owner), dtype=np.int32) - first[owner]


def _empty_arrays(shape: StepShape) -> StepArrays:
    def zeros(*size: int) -> Int32Array:
        return np.zeros(size, np.int32)

    return StepArrays(
        tokens=zeros(shape.tokens),
        positions=zeros(shape.tokens),
        lane_start=zeros(shape.lanes),
        num_lanes=zeros(),
        context_pages=zeros(shape.lanes, shape.max_context_pages),
        context_lens=zeros(shape.lanes, shape.max_context_pages),
        write_starts=zeros(shape.lanes),
        write_pages=zeros(shape.lanes),
        num_writes=zeros(),
        granule_start=zeros(shape.max_granules),
        granule_index=zeros(shape.max_granules),
        num_granules=zeros(),
        score_tokens=zeros(shape.max_scored_rows),
        num_scored=zeros(),
        num_places=zeros(),
    )
