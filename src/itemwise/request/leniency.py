"""Requests that are taken although a strict reader would refuse them: no query, long items.

Nothing here guesses: the request's own fields ask for it, or there is only one meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from itemwise.errors import RequestError
from itemwise.request.tokenizer import Tokenizer
from itemwise.request.tools import PromptTools

MAX_TOKEN_CHARS = 64  # longer tokens are runs of spaces and the like


def without_query(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a request whose items begin the sequence.

    Texts get the special tokens that start the model's sequences; token ids are taken as they are.
    """
    items = fields.get("items")
    by_text = isinstance(items, list) and all(isinstance(item, str) for item in items)
    return {**fields, "query": "" if by_text else []}


def cut_items(
    fields: Mapping[str, Any], tools: PromptTools
) -> tuple[Mapping[str, Any], tuple[int, ...]]:
    """The fields with items cut that are too long, and which those are; only with `truncate`.

    Raises:
        RequestError: `truncate` or `max_tokens_per_item` is of the wrong type.
    """
    wanted, most = fields.get("truncate"), fields.get("max_tokens_per_item")
    if wanted is not None and not isinstance(wanted, bool):
        raise RequestError("invalid_truncate", "`truncate` is not true or false", "truncate")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise RequestError(
            "invalid_max_tokens_per_item",
            "`max_tokens_per_item` is not an integer of 1 or more",
            "max_tokens_per_item",
        )
    items, query = fields.get("items"), fields.get("query")
    if not wanted or not isinstance(items, Sequence) or isinstance(items, str):
        return fields, ()
    tail, template = "", tools.template if fields.get("apply_template") is True else None
    if template is not None and isinstance(query, str):
        query = template.query.replace("{query}", query)
        tail = template.item.replace("{item}", "")
    room = tools.limits.max_seq_len - (tools.limits.delimiter is not None)
    room -= _num_tokens(query, tools, starts=True) + _num_tokens(tail, tools)
    most = room if most is None else min(room, most)
    if most < 1:
        return fields, ()  # the query alone is too long, which is found later
    if not all(isinstance(item, str | Sequence) for item in items):
        return fields, ()  # found later, too
    kept = [_cut(item, most, tools) for item in items]
    cut = tuple(i for i, (a, b) in enumerate(zip(items, kept, strict=True)) if len(a) > len(b))
    return {**fields, "items": kept}, cut


def cut_text(text: str, most: int, tokenizer: Tokenizer) -> str:
    """The longest beginning of a text that has at most `most` tokens; itself if it fits."""

    def fits(number: int) -> bool:
        (ids,) = tokenizer.encode_batch([text[:number]])
        return len(ids) <= most

    low, high = 0, min(len(text), most * MAX_TOKEN_CHARS)
    if fits(high):
        return text[:high]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return text[:low]


def _num_tokens(text: Any, tools: PromptTools, *, starts: bool = False) -> int:
    if not isinstance(text, str):
        return len(text) if isinstance(text, Sequence) else 0
    if not text or tools.tokenizer is None:
        return 0
    return len(tools.tokenizer.encode(text) if starts else tools.tokenizer.encode_batch([text])[0])


def _cut(item: Any, most: int, tools: PromptTools) -> Any:
    """An item with at most `most` tokens; itself if it fits, or if it is neither text nor ids."""
    if isinstance(item, str):
        return item if tools.tokenizer is None else cut_text(item, most, tools.tokenizer)
    return item[:most] if isinstance(item, Sequence) and len(item) > most else item
