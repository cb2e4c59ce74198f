from __future__ import annotations

import pytest

from itemwise.request.surrogates import MAX_SEARCHED_BYTES, surrogate_place


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"query": "a", "items": ["b", "c\\ud83d"]}', "items[1]"),
        (b'{"query": "\\udc00", "items": []}', "query"),
        (b'{"items": [{"text": ["\\ud83d!"]}]}', "items[0].text[0]"),
        (b'{"query": "\\ud83d\\udca1"}', None),
        (b'{"query": "\\ud83d"', None),
        (b"[" * 100_000, None),
        (b'{"query": "\\ud83d", "more": "' + b"x" * MAX_SEARCHED_BYTES + b'"}', None),
    ],
)
def test_place_of_a_lone_surrogate(body: bytes, place: str | None) -> None:
    assert surrogate_place(body) == place
