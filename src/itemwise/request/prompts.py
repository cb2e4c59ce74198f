"""Full prompts to token ids: what all items share, and what each adds.

A prompt is encoded whole, as a sequence in training was: the tokens that begin a sequence stand at
its start once, none is put at its end, and a word that goes over from one text into the next is one
word. `encode_prompts` does so without encoding what the prompts share again for each of them. It
cuts the shared text at its last safe border (`request/borders.py`); what is before it is the query,
and what is left of the shared text goes in front of each item.

Where it cuts depends on the shared text alone. If it looked at the items (for their longest common
beginning, say), the bits of a score would depend on which other items a request has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np

from itemwise.errors import RequestError
from itemwise.request.tokenizer import BORDER_SEARCH_CHARS, Tokenizer
from itemwise.types import Int32Array, TokenLists, token_array


@dataclass(frozen=True)
class Segment:
    """A part of a prompt.

    Attributes:
        text: what it says.
        special: whether control tokens spelled in it are control tokens, as in a template;
            otherwise they are text, as in what a user wrote.
    """

    text: str
    special: bool = False


Prompt = Sequence[Segment]


class Names(NamedTuple):
    """The request fields that messages name."""

    shared: str = "query"
    items: str = "items"


NAMES = Names()


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts in token ids.

    Attributes:
        query: int32, what all prompts begin with; empty if nothing in the shared text is safe from
            what follows it.
        items: int32 lists, what comes after it in each prompt.
        cut: per item, whether the end of its text was left out.
    """

    query: Int32Array
    items: TokenLists
    cut: list[bool]


def encode_prompts(
    tokenizer: Tokenizer,
    shared: Prompt,
    items: Sequence[Prompt],
    *,
    max_tokens: int | None,
    cut: int | None = None,
    names: Names = NAMES,
) -> EncodedPrompts:
    """The tokens of each full prompt, `shared` and an item, as of one text.

    `shared` should have all text before the first character that depends on the item.

    Args:
        tokenizer: of the model.
        shared: what all prompts begin with.
        items: what follows it in each.
        max_tokens: maximum tokens of a prompt; None for no limit.
        cut: index, in each item, of the segment that loses its end if a prompt is too long; None
            if that is an error.
        names: what the caller calls the texts.

    Raises:
        RequestError: a text is not Unicode (`invalid_query_type`, `invalid_items_type`), has no
            tokens (`empty_query`), or is too long (`sequence_too_long`); it names the item.
    """
    work = _Encoder(tokenizer, max_tokens, cut, names)
    items = work.bounded(shared, items)
    return work.encode(_split(tokenizer, shared, items), items)


def encode_parts(
    tokenizer: Tokenizer,
    shared: Prompt,
    items: Sequence[Prompt],
    *,
    max_tokens: int | None,
    cut: int | None = None,
    names: Names = NAMES,
) -> EncodedPrompts:
    """Like `encode_prompts`, with `shared` and each item encoded as texts of their own."""
    work = _Encoder(tokenizer, max_tokens, cut, names)
    items = work.bounded(shared, items)
    query = tokenizer.begun(tokenizer.encode_texts([spell(tokenizer, shared)])[0])
    return work.encode(_Split(query), items)


@dataclass(frozen=True)
class _Split:
    """How prompts become a query and the rest.

    Attributes:
        query: token ids that all prompts begin with.
        front: what of the shared text goes in front of each item.
        context: of the border before it.
        skip: tokens after the context that are the query's.
        begins: whether what goes in front of the items begins a sequence.
    """

    query: list[int]
    front: Prompt = ()
    context: str = ""
    skip: int = 0
    begins: bool = False


def _split(tokenizer: Tokenizer, shared: Prompt, items: Sequence[Prompt]) -> _Split:
    text = spell(tokenizer, shared)
    last_run = list(_runs(shared))[-1:]
    if not (last_run and last_run[0].special and tokenizer.may_continue(last_run[0].text)):
        border = tokenizer.last_border(text)
        if border is not None:
            before = tokenizer.encode_texts([text[: border.place]])[0]
            rest = (Segment(text[border.place :]),)
            query = tokenizer.begun(before)
            return _Split(query, rest, border.context, begins=not before)
        if not text or (tokenizer.has_borders and len(text) <= BORDER_SEARCH_CHARS):
            return _Split(tokenizer.begin, (Segment(text),), begins=True)
    return _probable_split(tokenizer, shared, items)


def _probable_split(tokenizer: Tokenizer, shared: Prompt, items: Sequence[Prompt]) -> _Split:
    """A split of a text without a border that is known to be safe, from whole prompts.

    Ends the query where the last word of the shared text begins, if the prompts confirm that.
    """
    if tokenizer.safe_borders_alone:
        raise RequestError("dependent_items", "the items decide where their query ends")
    text = spell(tokenizer, shared)
    place = max(0, len(text) - BORDER_SEARCH_CHARS, text.rstrip().rfind(" "))
    prompts = [spell(tokenizer, [*shared, *item]) for item in items]
    found = tokenizer.encode_texts([text[:place], text, *prompts])
    start, *wholes = (tokenizer.not_begun(ids) for ids in found)
    num_shared = min((_num_common(start, whole) for whole in wholes), default=len(start))
    return _Split([*tokenizer.begin, *start[:num_shared]], shared, skip=num_shared, begins=True)


def _num_common(a: list[int], b: list[int]) -> int:
    """How many tokens two lists begin with in common."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def _runs(prompt: Prompt) -> list[Segment]:
    """The segments, neighbours of one kind joined."""
    return [
        Segment("".join(segment.text for segment in run), special)
        for special, run in groupby(prompt, lambda segment: segment.special)
    ]


def spell(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """The text of a prompt, with marks for its control tokens."""
    return "".join(
        tokenizer.spell_control(run.text) if run.special else run.text for run in _runs(prompt)
    )


class _Encoder:
    """Encodes the items of one call and keeps its limits."""

    def __init__(
        self, tokenizer: Tokenizer, max_tokens: int | None, cut: int | None, names: Names
    ) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._cut = cut
        self._names = names
        self._was_cut: list[bool] = []

    def bounded(self, shared: Prompt, items: Sequence[Prompt]) -> Sequence[Prompt]:
        """The items, their texts Unicode and short enough to be encoded."""
        num_shared = _num_bytes(shared, "invalid_query_type", self._names.shared)
        sizes = [
            _num_bytes(item, "invalid_items_type", f"{self._names.items}[{index}]")
            for index, item in enumerate(items)
        ]
        self._was_cut = [False] * len(sizes)
        if self._max_tokens is None:
            return items
        most = self._max_tokens * self._tokenizer.max_token_bytes
        if num_shared > most:
            raise self._too_many_bytes(f"`{self._names.shared}` has", num_shared, most, -1)
        if num_shared + max(sizes, default=0) <= most:
            return items
        if self._cut is None:
            index = int(np.argmax(sizes))
            what = f"`{self._names.shared}` and `{self._names.items}[{index}]` have"
            raise self._too_many_bytes(what, num_shared + sizes[index], most, index)
        return [
            self._shortened(index, item, num_shared + size - most)
            for index, (item, size) in enumerate(zip(items, sizes, strict=True))
        ]

    def _shortened(self, index: int, item: Prompt, excess: int) -> Prompt:
        assert self._cut is not None
        if excess <= 0:
            return item
        self._was_cut[index] = True
        segment = item[self._cut]
        kept = segment.text.encode()[: max(0, len(segment.text.encode()) - excess)]
        if not kept:
            raise self._no_room(index)
        return _replaced(item, self._cut, kept.decode(errors="ignore"), segment.special)

    def encode(self, split: _Split, items: Sequence[Prompt]) -> EncodedPrompts:
        """The tokens of the items after the split's query."""
        rows = self._rows(split, items)
        room = None if self._max_tokens is None else self._max_tokens - len(split.query)
        for index, row in enumerate(rows):
            if not split.query and not row:
                raise RequestError(
                    "empty_query",
                    f"`{self._names.shared}` has no tokens, expected at least one",
                    self._names.shared,
                )
            if room is not None and len(row) > room:
                if self._cut is None:
                    longest = max(range(len(rows)), key=lambda each: len(rows[each]))
                    raise self._too_many_tokens(longest, len(split.query), len(rows[longest]))
                rows[index] = self._cut_row(split, items[index], index, room)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        tokens = np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1]))
        return EncodedPrompts(token_array(split.query), TokenLists(tokens, offsets), self._was_cut)

    def _rows(self, split: _Split, items: Sequence[Prompt]) -> list[list[int]]:
        texts = [spell(self._tokenizer, [*split.front, *item]) for item in items]
        found = self._tokenizer.encode_texts(texts, split.context)
        if split.begins:
            found = [self._tokenizer.not_begun(ids) for ids in found]
        return [ids[split.skip :] for ids in found] if split.skip else found

    def _cut_row(self, split: _Split, item: Prompt, index: int, room: int) -> list[int]:
        """The tokens of an item that is too long, with as much of its text as has room."""
        assert self._cut is not None
        self._was_cut[index] = True
        text = spell(self._tokenizer, [item[self._cut]])
        before = split.context + spell(self._tokenizer, [*split.front, *item[: self._cut]])
        while text:
            item = _replaced(item, self._cut, text)
            row = self._rows(split, [item])[0]
            excess = len(row) - room
            if excess <= 0:
                return row
            whole = split.context + spell(self._tokenizer, [*split.front, *item])
            starts = [start - len(before) for start in self._tokenizer.places(whole)]
            starts = [start for start in starts if 0 <= start < len(text)]
            text = text[: starts[-excess]] if excess < len(starts) else ""
        raise self._no_room(index)

    def _no_room(self, index: int) -> RequestError:
        names = self._names
        return RequestError(
            "sequence_too_long",
            f"`{names.shared}` leaves no room for `{names.items}[{index}]`: a prompt has at most "
            f"{self._max_tokens} tokens; shorten `{names.shared}`",
            names.shared,
        )

    def _too_many_tokens(self, index: int, num_shared: int, num_own: int) -> RequestError:
        names, total = self._names, num_shared + num_own
        assert self._max_tokens is not None
        return RequestError(
            "sequence_too_long",
            f"`{names.shared}` and `{names.items}[{index}]` make {total} tokens, at most "
            f"{self._max_tokens} are allowed; shorten one of them",
            names.items if num_shared < self._max_tokens else names.shared,
        )

    def _too_many_bytes(self, what: str, size: int, most: int, index: int) -> RequestError:
        return RequestError(
            "sequence_too_long",
            f"{what} {size} bytes of text, at most {most} are allowed ({self._max_tokens} tokens "
            f"of up to {self._tokenizer.max_token_bytes} bytes); shorten the text",
            self._names.shared if index < 0 else self._names.items,
        )


def _replaced(item: Prompt, place: int, text: str, special: bool = False) -> Prompt:
    """The item with another text in one segment."""
    return [*item[:place], Segment(text, special), *item[place + 1 :]]


def _num_bytes(prompt: Prompt, code: str, name: str) -> int:
    """Bytes of a prompt's text in UTF-8; raises what `num_bytes` does."""
    return sum(num_bytes(segment.text, code, name) for segment in prompt)


def num_bytes(text: str, code: str, name: str) -> int:
    """Bytes of a text in UTF-8.

    Args:
        text: any.
        code: of the error.
        name: of the field that the text is from, with an index if it has one, for the message.

    Raises:
        RequestError: it has a lone surrogate, which Python's text can contain but Unicode cannot.
    """
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestError(
            code,
            f"`{name}` has a lone surrogate at character {error.start}, expected Unicode text",
            name.partition("[")[0],
        ) from None
