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
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any, Literal, NamedTuple, Protocol, overload

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]
Float32Array = NDArray[np.float32]
AnyArray = Any  # an array of NumPy on the host, of JAX in a program
Tokens = Int32Array | Sequence[int]  # token ids as callers may give them
Algorithm = Literal["prefill_extend", "packed", "serial"]
Mask = Literal["dense", "segment"]  # how a packed sequence tells its items apart
# How a processor runs a model, by C++ kernels for some instructions or by XLA: see
# `engine/cpu_level.py`.
CppLevel = Literal[
    "cpp-amx",
    "cpp-avx512",
    "cpp-avx2",
    "cpp-neon",
    "cpp-avx512-bfloat16",
    "cpp-avx2-bfloat16",
    "cpp-plain-bfloat16",
]
CpuLevelName = Literal[CppLevel, "xla-bfloat16", "xla-float32"]
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


def token_array(tokens: Tokens) -> Int32Array:
    """The ids as a read-only int32 array; no copy of one that is int32 already."""
    array = np.asarray(tokens, np.int32).view()
    array.setflags(write=False)
    return array


class TokenLists(Sequence[Int32Array]):
    """Lists of token ids, end to end in one read-only array. Equal if the lists are.

    An index gives a view of one list, a slice gives lists.

    Attributes:
        tokens: int32, the ids of all lists in order.
        offsets: int64 [lists + 1], where in `tokens` each list begins, and where the last one ends.
    """

    def __init__(self, tokens: Int32Array, offsets: Int64Array) -> None:
        self.tokens = token_array(tokens)
        self.offsets = offsets.view()
        self.offsets.setflags(write=False)

    @classmethod
    def of(cls, lists: Sequence[Tokens]) -> TokenLists:
        """The lists, copied into one array unless they are in one already.

        Raises:
            OverflowError: an id does not fit 32 bits.
        """
        if isinstance(lists, TokenLists):
            return lists
        offsets = np.zeros(len(lists) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, lists), np.int64, len(lists)), out=offsets[1:])
        return cls(np.fromiter(chain.from_iterable(lists), np.int32, int(offsets[-1])), offsets)

    @property
    def lengths(self) -> Int64Array:
        """int64 [lists], how many ids each list has."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Int32Array: ...
    @overload
    def __getitem__(self, index: slice) -> TokenLists: ...
    def __getitem__(self, index: int | slice) -> Int32Array | TokenLists:
        places = range(len(self))[index]
        if isinstance(places, int):
            return self.tokens[self.offsets[places] : self.offsets[places + 1]]
        if places.step != 1:
            return TokenLists.of([self[place] for place in places])
        offsets = self.offsets[places.start : max(places.start, places.stop) + 1]
        return TokenLists(self.tokens[offsets[0] : offsets[-1]], offsets - offsets[0])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenLists):
            return NotImplemented
        same_offsets = np.array_equal(self.offsets, other.offsets)
        return same_offsets and np.array_equal(self.tokens, other.tokens)

    def __repr__(self) -> str:
        return f"TokenLists.of({[one.tolist() for one in self]})"


@dataclass(frozen=True, init=False, eq=False)
class ScoreRequest:
    """A checked request in token ids, given as any sequences of ids that fit 32 bits.

    Arrays are not copied: their owner must not write to them any more.

    Attributes:
        query: token ids all items share.
        items: token ids of each item. An item may be empty, if the query is not.
        labels: per item, the token ids whose probability is asked for. A model with a
            classification head knows no other labels than the head's: ids 0 to its number of
            labels - 1, all of them as `(tuple(range(num_labels)),) * len(items)`.
        apply_softmax: softmax over an item's labels; else probabilities over the vocabulary.
        item_first: score `item + query` in place of `query + item`.
        temperature: divides the logits, above zero.
        chunk_size: most items of a packed sequence, 0 for no bound, None for the engine's setting.
            Changes nothing where items are not packed into sequences.
        priority: where requests wait for each other, those of a lower number run first.
        timeout_s: seconds after which the answer is not wanted any more; None for the server's
            bound.
    """

    query: Int32Array
    items: TokenLists
    labels: tuple[tuple[int, ...], ...]
    apply_softmax: bool
    item_first: bool
    temperature: float
    chunk_size: int | None
    priority: int
    timeout_s: float | None

    def __init__(
        self,
        query: Tokens,
        items: Sequence[Tokens],
        labels: tuple[tuple[int, ...], ...],
        apply_softmax: bool = False,
        item_first: bool = False,
        temperature: float = 1.0,
        chunk_size: int | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> None:
        vars(self).update(  # the class is frozen
            query=token_array(query),
            items=TokenLists.of(items),
            labels=labels,
            apply_softmax=apply_softmax,
            item_first=item_first,
            temperature=temperature,
            chunk_size=chunk_size,
            priority=priority,
            timeout_s=timeout_s,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoreRequest):
            return NotImplemented
        names = [each.name for each in fields(self) if each.name != "query"]
        return np.array_equal(self.query, other.query) and all(
            getattr(self, name) == getattr(other, name) for name in names
        )


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went, in seconds, from when the engine took it in.

    Attributes:
        prefill: until the last page of its prefix was computed; 0 if all were found.
        extend: from then until its last item was scored.
    """

    prefill: float = 0.0
    extend: float = 0.0


class TokenTexts(NamedTuple):
    """Tokens: their ids, and the text that each stands for."""

    ids: list[int]
    texts: list[str]


@dataclass(frozen=True)
class PromptTokens:
    """The prompts of a request as the model reads them.

    Attributes:
        shared: what all of them begin with, including the delimiter.
        items: what comes after it in each.
    """

    shared: TokenTexts
    items: list[TokenTexts]


@dataclass(frozen=True)
class ScoreResult:
    """The answer to a request.

    Attributes:
        scores: per item a float32 array [labels], in the order of the request. Where all items
            have equally many labels it is one float32 array [items, labels].
        prompt_tokens: tokens of the request, the shared prefix counted once.
        cached_tokens: prefix tokens that were found in the page cache.
        timings: where the time went.
        logits: of the labels as the model gives them, before temperature and softmax, in the form
            of `scores`. Of a classification head, its outputs; as exact as the scores. An engine
            always gives them.
        logsumexps: float32 [items], of all the model's logits divided by the temperature; None
            with `apply_softmax`.
        logprobs: of the labels over the whole vocabulary at temperature 1, in the form of
            `scores`; None unless they were asked for.
        cut_items: items that were too long and of which only the beginning was read.
        tokens: the prompts in tokens; None unless they were asked for.
    """

    scores: Float32Array | list[Float32Array]
    prompt_tokens: int
    cached_tokens: int = 0
    timings: Timings = Timings()
    logits: Float32Array | list[Float32Array] | None = None
    logsumexps: Float32Array | None = None
    logprobs: Float32Array | list[Float32Array] | None = None
    cut_items: tuple[int, ...] = ()
    tokens: PromptTokens | None = None


@dataclass(frozen=True)
class RankedItem:
    """An item of a ranking.

    Attributes:
        index: its place in the request.
        text: the item.
        score: as the model's profile reads it; for most, the probability of a match, 0 to 1.
        margin: what the ranking is sorted by: log-odds or a logit, which does not saturate.
        cut: whether the text was too long and only its beginning was read.
    """

    index: int
    text: str
    score: float
    margin: float
    cut: bool = False


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
    def waits_for_pages(self) -> bool:
        """Whether its next rows found no pages; it gets them as others finish."""
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
        in_flight: whether steps are still under way.
    """

    finished: list[OpenRequest] = field(default_factory=list)
    failed: list[tuple[OpenRequest, Exception]] = field(default_factory=list)
    landed: list[StepStats] = field(default_factory=list)
    in_flight: bool = False
