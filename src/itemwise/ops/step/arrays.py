"""What a step is made of: its arrays, and their fixed sizes. Imports no JAX.

The packer fills these arrays with NumPy, and `forward` takes the same ones as JAX arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Int32

from itemwise.types import AnyArray

# Products of fewer rows may add in another order; steps of all sizes shall have the same bits.
MIN_SCORED_ROWS = 32


@dataclass(frozen=True)
class StepShape:
    """The fixed sizes of a step; what is compiled for it depends on these alone.

    An engine may have steps of several sizes, which differ in tokens, lanes and scored rows alone.

    Attributes:
        tokens: T, token places of a step.
        lanes: G, lanes at most.
        lane_tokens: R, token places of a lane.
        lane_alignment: a lane begins at a multiple of this: 1, or R for a kernel that takes lanes
            as tiles.
        page_tokens: tokens of a page, the most a row may have.
        granule_tokens: tokens of a granule; rows attend to themselves granule by granule.
        block_pages: pages that one context product covers.
        max_context_pages: C, the longest context in pages, a multiple of `block_pages`.
        min_scored_rows: places for scored rows at least.
    """

    tokens: int
    lanes: int
    lane_tokens: int
    lane_alignment: int
    page_tokens: int
    granule_tokens: int
    block_pages: int
    max_context_pages: int
    min_scored_rows: int = MIN_SCORED_ROWS

    @property
    def max_scored_rows(self) -> int:
        """I, rows whose last token can be scored in a step.

        One for every four tokens, unless the least is more: items of four tokens or more fill a
        step. Shorter ones leave places empty, and in return the scored rows' last layer, labels and
        log-sum-exp stay small.
        """
        return max(self.tokens // 4, self.min_scored_rows)

    @property
    def max_granules(self) -> int:
        """Granules that any packing of `max_scored_rows` rows and `lanes` others can need."""
        rows = min(self.max_scored_rows, self.tokens)
        return self.tokens // self.granule_tokens + rows + self.lanes


class StepArrays(NamedTuple):
    """The arrays of one step, all of fixed shape.

    Attributes:
        tokens: token ids; padding holds 0.
        positions: positions in the sequence; padding holds 0.
        lane_start: first token place of each lane, increasing; lanes may overlap, and a place
            belongs to the last lane that has it. Padding holds 0.
        num_lanes: lanes in use.
        context_pages: pages each lane reads, in order; padding holds the null page 0.
        context_lens: valid tokens of those pages, at least one; padding holds 0.
        write_starts: the place of the first token of each row whose keys and values are kept;
            padding holds 0.
        write_pages: the page that takes them; padding holds 0.
        num_writes: writes in use.
        granule_start: first token place of each granule, increasing.
        granule_index: granules of the same row before it; padding holds 0.
        num_granules: granules in use.
        score_tokens: token places that are scored; padding holds 0.
        num_scored: rows that are scored.
        num_places: token places up to the last one in use, gaps between lanes included.
    """

    tokens: Int32[AnyArray, " T"]
    positions: Int32[AnyArray, " T"]
    lane_start: Int32[AnyArray, " G"]
    num_lanes: Int32[AnyArray, ""]
    context_pages: Int32[AnyArray, "G C"]
    context_lens: Int32[AnyArray, "G C"]
    write_starts: Int32[AnyArray, " G"]
    write_pages: Int32[AnyArray, " G"]
    num_writes: Int32[AnyArray, ""]
    granule_start: Int32[AnyArray, " granules"]
    granule_index: Int32[AnyArray, " granules"]
    num_granules: Int32[AnyArray, ""]
    score_tokens: Int32[AnyArray, " I"]
    num_scored: Int32[AnyArray, ""]
    num_places: Int32[AnyArray, ""]
