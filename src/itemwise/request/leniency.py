"""Requests that are taken although a strict reader would refuse them: no query, long items.

Nothing here guesses: the request's own fields ask for it, or there is only one meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from itemwise.request.tokenizer import Tokenizer

MAX_TOKEN_CHARS = 64  # longer tokens are runs of spaces and the like


def without_query(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a request whose items begin the sequence.

    Texts get the special tokens that start the model's sequences; token ids are taken as they are.
    """
    items = fields.get("items")
    by_text = isinstance(items, list) and all(isinstance(item, str) for item in items)
    return {**fields, "query": "" if by_text else []}


def cut_text(text: str, most: int, tokenizer: Tokenizer, *, special: bool = False) -> str:
    """The longest beginning of a text that has at most `most` tokens; itself if it fits.

    Args:
        text: Unicode, without lone surrogates.
        most: tokens.
        tokenizer: of the model.
        special: whether control tokens that the text spells are control tokens.
    """
    encode = tokenizer.encode_batch if special else tokenizer.encode_texts

    def fits(number: int) -> bool:
        (ids,) = encode([text[:number]])
        return len(ids) <= most

    low, high = 0, min(len(text), most * MAX_TOKEN_CHARS)
    if fits(high):
        return text[:high]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return text[:low]
