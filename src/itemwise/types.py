"""The types that pass between modules, and the letters that name array axes.

Axis letters, used in shape annotations and, in lower case, in einsum equations:

    G  lanes of a step            I  scored rows of a step     N  query heads
    R  tokens of a lane at most   C  context slots of a lane   K  key/value heads
    T  token places of a step     P  pages of the pool         H  head dimension
    S  context tokens             V  vocabulary                D  model width
    L  layers                     F  MLP width

and `page`, the tokens of a page: a chunk of a prefix is one row that fills one page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]
# Products of fewer rows may add in another order; steps of all sizes shall have the same bits.
MIN_SCORED_ROWS = 32
Algorithm = Literal["prefill_extend", "packed", "serial"]
Mask = Literal["dense", "segment"]  # how a packed sequence tells its items apart
# How a processor runs a model, see `cpu_level.py`: by C++ kernels for some instructions, or by XLA.
CppLevel = Literal["cpp-avx512", "cpp-avx2", "cpp-neon"]
CpuLevelName = Literal["xla-bfloat16", CppLevel, "xla-float32"]
Kernel = Literal[CppLevel, "gpu", "tpu"]  # attention that is not XLA's: C++, or Pallas


class DTypes(NamedTuple):
    """The types of arrays on the device.

    Attributes:
        weights: of weights.
        activations: of what enters a matrix product beside them, and of pages.
    """

    weights: np.dtype[Any]
    activations: np.dtype[Any]


@dataclass(frozen=True)
class WeightSpec:
    """One tensor of a checkpoint: its name there, its shape, and how a random one is drawn.

    `axes` names each axis of `shape` by what it counts (`"vocab"`, `"heads"`, ...), which is what
    sharding and documentation go by. `init` is `"normal"` (standard deviation `scale`), `"gain"`
    (norm weights around `scale`) or `"bias"` (like normal).
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Literal["normal", "gain", "bias"] = "normal"
    scale: float = 0.02


@dataclass(frozen=True)
class ScoreRequest:
    """A checked request in token ids.

    Attributes:
        query: token ids all items share, at least one.
        items: token ids of each item; an item may be empty.
        labels: per item, the token ids whose probability is asked for.
        apply_softmax: softmax over an item's labels; else probabilities over the vocabulary.
        item_first: score `item + query` in place of `query + item`.
        temperature: divides the logits, above zero.
        chunk_size: most items of a packed sequence, 0 for no bound, None for the engine's setting.
            Changes nothing where items are not packed into sequences.
        priority: where requests wait for each other, those of a lower number run first.
        timeout_s: seconds after which the answer is not wanted any more; None for the server's
            bound.
    """

    query: tuple[int, ...]
    items: tuple[tuple[int, ...], ...]
    labels: tuple[tuple[int, ...], ...]
    apply_softmax: bool = False
    item_first: bool = False
    temperature: float = 1.0
    chunk_size: int | None = None
    priority: int = 0
    timeout_s: float | None = None


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went, in seconds, from when the engine took it in.

    Attributes:
        prefill: until the last page of its prefix was computed; 0 if all were found.
        extend: from then until its last item was scored.
    """

    prefill: float = 0.0
    extend: float = 0.0


@dataclass(frozen=True)
class ScoreResult:
    """The answer to a request.

    Attributes:
        scores: per item a float32 array [labels], in the order of the request. Where all items
            have equally many labels it is one float32 array [items, labels].
        prompt_tokens: tokens of the request, the shared prefix counted once.
        cached_tokens: prefix tokens that were found in the page cache.
        timings: where the time went.
    """

    scores: Float32Array | list[Float32Array]
    prompt_tokens: int
    cached_tokens: int = 0
    timings: Timings = Timings()


@dataclass(frozen=True)
class RankedItem:
    """An item of a ranking.

    Attributes:
        index: its place in the request.
        text: the item.
        score: probability of the template's first label, 0 to 1.
    """

    index: int
    text: str
    score: float


@dataclass(frozen=True)
class StepShape:
    """The fixed sizes of a step; what is compiled for it depends on these alone.

    An engine may have steps of several sizes, which differ in tokens and lanes alone.

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
    """

    tokens: int
    lanes: int
    lane_tokens: int
    lane_alignment: int
    page_tokens: int
    granule_tokens: int
    block_pages: int
    max_context_pages: int

    @property
    def max_rows(self) -> int:
        """I, rows whose last token can be scored in a step."""
        return max(self.tokens // 4, MIN_SCORED_ROWS)

    @property
    def max_granules(self) -> int:
        """Granules that any packing of `max_rows` scored rows and `lanes` others can need."""
        return self.tokens // self.granule_tokens + self.max_rows + self.lanes


@dataclass(frozen=True)
class Context:
    """What a row sees before itself: pages in order, and how many tokens of each are valid."""

    pages: tuple[int, ...] = ()
    lens: tuple[int, ...] = ()


@dataclass(frozen=True)
class RowPlan:
    """A run of at most a page's tokens that sees a context and, causally, itself.

    Attributes:
        tokens: token ids, at least one and at most a page's.
        first_position: position of the first token in its sequence.
        context: the pages it reads.
        write_page: page that receives its keys and values, or None.
        score_id: the caller's name for the row whose last token is scored, or None.
    """

    tokens: Sequence[int]
    first_position: int
    context: Context
    write_page: int | None = None
    score_id: int | None = None


@dataclass
class StepBatch:
    """The arrays of one step, all of fixed shape, built by `packing`.

    Attributes:
        shape: sizes of the step; host only.
        tokens: int32 [T], token ids; padding holds 0.
        positions: int32 [T], positions in the sequence; padding holds 0.
        lane_start: int32 [G], first token place of each lane, increasing; lanes may overlap, and
            a place belongs to the last lane that has it. Padding holds 0.
        num_lanes: int32 [], lanes in use.
        context_pages: int32 [G,C], pages each lane reads, in order; padding holds the null page 0.
        context_lens: int32 [G,C], valid tokens of those pages; padding holds 0.
        num_blocks: int32 [G], blocks of context slots each lane reads; 0 for a lane without.
        write_starts: int32 [G], the place of the first token of each row whose keys and values
            are kept; padding holds 0.
        write_pages: int32 [G], the page that takes them; padding holds 0.
        num_writes: int32 [], writes in use.
        granule_start: int32 [max_granules], first token place of each granule, increasing.
        granule_index: int32 [max_granules], granules of the same row before it; padding holds 0.
        num_granules: int32 [], granules in use.
        score_tokens: int32 [I], token places that are scored; padding holds 0.
        num_places: int32 [], token places up to the last one in use, gaps between lanes included.
        num_scored: int32 [], rows that are scored.
        score_ids: the `score_id` of each scored row, in the order of `score_tokens`; host only.
        num_tokens: tokens in use; host only.
    """

    shape: StepShape
    tokens: Int32Array
    positions: Int32Array
    lane_start: Int32Array
    num_lanes: Int32Array
    context_pages: Int32Array
    context_lens: Int32Array
    num_blocks: Int32Array
    write_starts: Int32Array
    write_pages: Int32Array
    num_writes: Int32Array
    granule_start: Int32Array
    granule_index: Int32Array
    num_granules: Int32Array
    score_tokens: Int32Array
    num_places: Int32Array
    num_scored: Int32Array
    score_ids: list[int] = field(default_factory=list)
    num_tokens: int = 0


@dataclass(frozen=True)
class PackedShape:
    """The fixed sizes of a packed sequence; its program depends on these alone.

    Attributes:
        tokens: T, token places of the sequence.
        max_rows: I, items of the sequence at most.
        granule_tokens: tokens of a granule; items attend to themselves granule by granule.
    """

    tokens: int
    max_rows: int
    granule_tokens: int

    @property
    def max_granules(self) -> int:
        """Granules that any `max_rows` items can need."""
        return self.tokens // self.granule_tokens + self.max_rows


@dataclass
class PackedBatch:
    """The arrays of a packed sequence: the prefix, then the items, without a gap.

    Attributes:
        tokens: int32 [T], token ids; padding holds 0.
        positions: int32 [T], positions as if each item alone followed the prefix; padding holds 0.
        row_starts: int32 [I], the place of each item's first token, increasing; padding holds T.
        prefix_end: int32 [], tokens of the prefix.
        num_tokens: int32 [], tokens in use.
        granule_start: int32 [max_granules], as in `StepBatch`; the prefix has none.
        granule_index: int32 [max_granules], as in `StepBatch`.
        num_granules: int32 [], granules in use.
        score_tokens: int32 [I], the place at which each item is scored; padding holds 0.
        num_scored: int32 [], items in use.
    """

    tokens: Int32Array
    positions: Int32Array
    row_starts: Int32Array
    prefix_end: Int32Array
    num_tokens: Int32Array
    granule_start: Int32Array
    granule_index: Int32Array
    num_granules: Int32Array
    score_tokens: Int32Array
    num_scored: Int32Array


@dataclass(frozen=True)
class StepStats:
    """A step that is done: an exact step, or a packed sequence.

    Attributes:
        seconds: from when the device could begin it until its results were here.
        num_tokens: tokens computed, padding left out.
        token_share: its tokens, as a share of the token places of the largest step; for a packed
            sequence, of its padded length.
        lane_share: its token places in use, gaps between lanes included, as the same share. A
            packed sequence has no gaps.
        num_items: items scored.
    """

    seconds: float
    num_tokens: int
    token_share: float
    lane_share: float
    num_items: int


class OpenRequest(Protocol):
    """A request that an engine has taken in, as those see it who wait for its answer."""

    @property
    def request(self) -> ScoreRequest:
        """What is scored."""
        ...

    @property
    def remaining_tokens(self) -> int:
        """Tokens still to be computed, at most."""
        ...

    @property
    def cached_tokens(self) -> int:
        """Prefix tokens that were found and not computed."""
        ...

    @property
    def done(self) -> bool:
        """Whether every item has its result."""
        ...

    def result(self) -> ScoreResult:
        """The answer, once `done`. From any thread."""
        ...


@dataclass
class StepOutcome:
    """What came of a call of the engine's `step`.

    Attributes:
        finished: requests that have all their results.
        failed: requests that were in a step that failed, and why.
        landed: steps that were completed.
        waiting: whether steps are still under way.
    """

    finished: list[OpenRequest] = field(default_factory=list)
    failed: list[tuple[OpenRequest, Exception]] = field(default_factory=list)
    landed: list[StepStats] = field(default_factory=list)
    waiting: bool = False
