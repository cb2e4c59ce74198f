"""Which text of a body is cut in the middle of a character, for a message that helps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

MAX_SEARCHED_BYTES = 4 * 1024 * 1024  # the search takes longer than parsing


def surrogate_place(body: bytes | bytearray) -> str | None:
    r"""Where JSON has a lone surrogate (`\ud83d`), as `items[37]`; None if it is not found.

    Strict parsers refuse such text and only say at which byte; this one accepts it.
    """
    if len(body) > MAX_SEARCHED_BYTES:
        return None
    try:
        return next(_places(json.loads(body), ""), None)
    except (ValueError, RecursionError):
        return None


def _places(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, str):
        if any("\ud800" <= char <= "\udfff" for char in value):
            yield path
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _places(each, f"{path}[{index}]")
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _places(each, f"{path}.{name}" if path else name)
