"""Prompts of several texts to token ids: what all share is the query, the rest are the items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from itemwise.errors import RequestError
from itemwise.request.tokenizer import Tokenizer

# How a text may go on: what comes next can change the last tokens of what is there.
_PROBES = ("a", " a", "1", ".", "\n", "é")


@dataclass(frozen=True)
class Segment:
    """A part of a prompt.

    Attributes:
        text: its text.
        special: whether control tokens that it spells are control tokens; else they are text.
    """

    text: str
    special: bool = False


Prompt = Sequence[Segment]


class Names(NamedTuple):
    """What the caller calls the texts, for messages."""

    shared: str = "query"
    items: str = "items"


NAMES = Names()


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts in token ids.

    Attributes:
        query: the tokens that all prompts share, whatever their items: a function of the shared
            text alone, so that an item's split does not depend on the others.
        items: the rest of each prompt.
        cut: for each item, whether its text was cut.
    """

    query: list[int]
    items: list[list[int]]
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
    """The prompts `shared + items[i]`, each tokenised as a whole.

    Args:
        tokenizer: the model's.
        shared: what all prompts begin with.
        items: how each goes on.
        max_tokens: most tokens of a prompt; None for no limit.
        cut: the segment of each item that loses its end if the prompt is too long; None if that
            is an error.
        names: what the caller calls the texts.

    Raises:
        RequestError: a prompt is too long (`sequence_too_long`).
    """
    start = _text(shared)
    kept, was_cut = _kept(tokenizer, start, items, max_tokens, cut, names)
    prompts = [tokenizer.encode(start + _text(item)) for item in kept]
    num_shared = _num_shared(tokenizer, start, prompts)
    rest = [ids[num_shared:] for ids in prompts]
    return EncodedPrompts(prompts[0][:num_shared], rest, was_cut)


def encode_parts(
    tokenizer: Tokenizer,
    shared: Prompt,
    items: Sequence[Prompt],
    *,
    max_tokens: int | None,
    cut: int | None = None,
    names: Names = NAMES,
) -> EncodedPrompts:
    """Like `encode_prompts`, with `shared` and each item tokenised as texts of their own."""
    start = _text(shared)
    kept, was_cut = _kept(tokenizer, start, items, max_tokens, cut, names)
    rest = tokenizer.encode_batch([_text(item) for item in kept])
    return EncodedPrompts(tokenizer.encode(start), rest, was_cut)


def _kept(
    tokenizer: Tokenizer,
    start: str,
    items: Sequence[Prompt],
    max_tokens: int | None,
    cut: int | None,
    names: Names,
) -> tuple[list[Prompt], list[bool]]:
    """The items, short enough, and which were cut."""
    found, was_cut = [], []
    for index, item in enumerate(items):
        kept = item if cut is None else _fitting(tokenizer, start, item, cut, max_tokens)
        ids = tokenizer.encode(start + _text(kept))
        if max_tokens is not None and len(ids) > max_tokens:
            raise RequestError(
                "sequence_too_long",
                f"`{names.shared}` and `{names.items}[{index}]` make {len(ids)} tokens, at most "
                f"{max_tokens} are allowed; shorten one of them",
                names.items,
            )
        found.append(kept)
        was_cut.append(kept is not item)
    return found, was_cut


def _text(segments: Sequence[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def _fitting(
    tokenizer: Tokenizer, start: str, item: Prompt, place: int, max_tokens: int | None
) -> Prompt:
    """The item, one segment of it cut until the prompt keeps the limit."""

    def with_characters(number: int) -> Prompt:
        return [*item[:place], Segment(item[place].text[:number]), *item[place + 1 :]]

    def fits(number: int) -> bool:
        ids = tokenizer.encode(start + _text(with_characters(number)))
        return max_tokens is None or len(ids) <= max_tokens

    low, high = 0, len(item[place].text)
    if fits(high):
        return item
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return with_characters(low)


def _num_shared(tokenizer: Tokenizer, start: str, prompts: Sequence[Sequence[int]]) -> int:
    """Tokens of the shared text that stay whatever follows."""
    if not start:
        return 0
    alone = tokenizer.encode(start)
    others = [tokenizer.encode(start + probe) for probe in _PROBES]
    least = len(alone)
    for ids in (*others, *prompts):
        same = (i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b)
        least = min(least, next(same, min(len(alone), len(ids))))
    return least
