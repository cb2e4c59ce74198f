"""JSON of a body, in memory that is bounded by the body's length.

A Python list of small lists takes forty times the bytes of its JSON. So a large body is cut between
its fields and between the elements of their lists. The pieces are parsed one after the other, and
lists of token ids become arrays at once; between the pieces, other threads run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from itemwise.errors import RequestError
from itemwise.request.surrogates import surrogate_place
from itemwise.types import TokenLists

WHOLE_BYTES = 1024 * 1024  # shorter bodies are parsed at once
PIECE_BYTES = 256 * 1024  # of a longer one, so many are looked at and parsed at once
MAX_FIELDS = 1000  # of a longer one
# Python objects of a body take at most so many times its bytes, or so many bytes if it is short.
MAX_GROWTH = 8
FREE_BYTES = 64 * 1024 * 1024
_SCALAR_BYTES, _CONTAINER_BYTES, _TEXT_BYTES = 40, 96, 64  # in CPython, with the place in a list
_LIST_HEAD = re.compile(rb'\s*+"(?:[^"\\]|\\.)*+"\s*+:\s*+\[')

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def parse_body(body: bytes | bytearray, max_elements: int) -> Any:
    """The decoded JSON; in a large body, long lists of lists of token ids are `TokenLists`.

    Args:
        body: JSON in UTF-8.
        max_elements: elements that a list in a large body may have.

    Raises:
        RequestError: it is not JSON, or would take too much memory.
    """
    if len(body) <= WHOLE_BYTES:
        return _decode(body)
    return _LargeObject(body, max_elements).decode()


def _decode(text: bytes | bytearray, start: int | None = None) -> Any:
    """The decoded JSON of a body, or of the piece of it that begins at the byte `start`."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _not_json(text, start, error) from None


def _not_json(
    text: bytes | bytearray, start: int | None, error: orjson.JSONDecodeError
) -> RequestError:
    """What is wrong, and at which place of the body."""
    search = start is None and "surrogate" in str(error)
    place = surrogate_place(text) if search else None
    if place is not None:
        return RequestError(
            "invalid_json",
            f"`{place[:100]}` has a lone surrogate, half a character, expected Unicode text",
            re.split(r"[.[]", place)[0][:100],
        )
    return RequestError("invalid_json", f"the body is not JSON: {why_no_json(text, error, start)}")


def why_no_json(
    text: bytes | bytearray, error: orjson.JSONDecodeError, start: int | None = None
) -> str:
    """What is wrong with bytes that orjson refuses; it calls all that is no UTF-8 surrogates.

    Args:
        text: the bytes.
        error: what orjson raised.
        start: where they begin in what the user knows, if that is more.
    """
    try:
        text.decode()
    except UnicodeDecodeError as wrong:
        place = (start or 0) + wrong.start
        return f"byte {place} is {text[wrong.start]:#04x}, which is no UTF-8"
    if start is None:
        return str(error)
    return f"{error.msg}: byte {start + len(error.doc[: error.pos].encode())}"


def _broken(why: str) -> RequestError:
    return RequestError("invalid_json", f"the body is not a JSON object: {why}")


class _Mark(NamedTuple):
    """A place in the body, and what lies before it.

    Attributes:
        place: of a comma or bracket.
        weight: bytes that Python objects of the text before it would take.
        num_commas: those before it that separate the elements of a field's list.
    """

    place: int
    weight: int
    num_commas: int


class _LargeObject:
    """A large body, parsed piece by piece."""

    def __init__(self, body: bytes | bytearray, max_elements: int) -> None:
        self._body = memoryview(body)
        self._max_elements = max_elements
        self._budget = max(MAX_GROWTH * len(body), FREE_BYTES)
        self._ends: list[_Mark] = []  # the first brace, commas between fields, the last brace
        self._cuts: list[_Mark] = []  # some commas between elements, one in `PIECE_BYTES`

    def decode(self) -> dict[str, Any]:
        """The object."""
        head = self._text(0, PIECE_BYTES).lstrip(b" \t\r\n")
        if head[:3] == b"\xef\xbb\xbf":
            raise _broken("it begins with a byte order mark; leave that out")
        if head and head[:1] != b"{":
            raise _broken("expected {...}")
        self._scan()
        if len(self._ends) < 2:
            raise _broken("it has no end")
        outside = self._text(0, self._ends[0].place), self._text(self._ends[-1].place + 1)
        if any(text.strip(b" \t\r\n") for text in outside):
            raise _broken("something comes before or after it")
        if self._text(self._ends[0].place)[:1] + self._text(self._ends[-1].place)[:1] != b"{}":
            raise _broken("expected {...}")
        found: dict[str, Any] = {}
        for begin, end in pairwise(self._ends):
            found |= self._field(begin, end)
        return found

    def _text(self, begin: int, end: int | None = None) -> bytes:
        return bytes(self._body[begin:end])

    def _field(self, begin: _Mark, end: _Mark) -> dict[str, Any]:
        """The field between two commas."""
        cuts = [cut for cut in self._cuts if begin.place < cut.place < end.place]
        head = _LIST_HEAD.match(self._body, begin.place + 1)
        if not (cuts and head):
            self._spend(end.weight - begin.weight)
            found: dict[str, Any] = _decode(
                b"{" + self._text(begin.place + 1, end.place) + b"}", begin.place
            )
            if not found and len(self._ends) > 2:
                raise _broken("a field is missing between two commas")
            return found
        (name,) = _decode(b"{" + head[0][:-1] + b"0}", begin.place)
        self._check_length(begin, end.num_commas)
        last = end.place - 1
        while self._body[last] in b" \t\r\n":
            last -= 1
        if self._body[last] != ord("]"):
            raise _broken("a list does not end")
        first = begin._replace(place=head.end() - 1)
        return {name: self._list([first, *cuts, end._replace(place=last)])}

    def _check_length(self, begin: _Mark, num_commas: int) -> None:
        """Returns if a field's list is not too long, with so many commas before its end."""
        if num_commas - begin.num_commas < self._max_elements:
            return
        head = _LIST_HEAD.match(self._body, begin.place + 1)
        name = _decode(head[0].rstrip(b": \t\r\n["), begin.place + 1) if head else "a field"
        raise RequestError(
            "too_many_items",
            f"`{name[:100]}` has more than {self._max_elements} elements; send several requests",
            name[:100] if head else None,
        )

    def _list(self, cuts: list[_Mark]) -> list[Any] | TokenLists:
        """The list between the first place and the last, cut at those in between."""
        pieces: list[list[Any] | TokenLists] = []
        for begin, end in pairwise(cuts):
            text = self._text(begin.place + 1, end.place)
            if not text.strip(b" \t\r\n"):
                raise _broken("an element is missing between two commas")
            piece = _compact(_decode(b"[" + text + b"]", begin.place))
            if not isinstance(piece, TokenLists):
                self._spend(end.weight - begin.weight)
            pieces.append(piece)
        lists = [piece for piece in pieces if isinstance(piece, TokenLists)]
        if len(lists) == len(pieces):
            return _joined(lists)
        if lists:  # a mixture, which `request/check.py` refuses: it names the element at fault
            self._spend(cuts[-1].weight - cuts[0].weight)
        return list(chain.from_iterable(map(_plain, pieces)))

    def _spend(self, weight: int) -> None:
        self._budget -= weight
        if self._budget < 0:
            raise RequestError(
                "too_many_values",
                f"the body has so many small values that they take more than {MAX_GROWTH} times "
                "its length in memory; send several requests",
            )

    def _scan(self) -> None:
        """Finds where the object may be cut."""
        depth = weight = num_commas = 0
        for start, window, plain in _windows(self._body):
            opens = plain & ((window == ord("[")) | (window == ord("{")))
            closes = plain & ((window == ord("]")) | (window == ord("}")))
            commas = plain & (window == ord(","))
            depths = depth + np.cumsum(opens.astype(np.int32) - closes)
            texts = plain & (window == ord('"'))  # where they end
            sizes = _SCALAR_BYTES * commas + _CONTAINER_BYTES * opens + _TEXT_BYTES * texts
            weights = weight + np.cumsum(sizes)
            between_elements = commas & (depths == 2)
            counts = num_commas + np.cumsum(between_elements)

            def mark(index: Any) -> _Mark:
                return _Mark(start + int(index), int(weights[index]), int(counts[index]))  # noqa: B023

            ends = np.flatnonzero((opens | commas) & (depths == 1) | closes & (depths == 0))
            if len(self._ends) + len(ends) > MAX_FIELDS:
                raise _broken(f"it has more than {MAX_FIELDS} fields")
            self._ends += map(mark, ends)
            if self._ends:
                self._check_length(self._ends[-1], int(counts[-1]))
            self._cuts += map(mark, np.flatnonzero(between_elements)[-1:])
            depth, weight, num_commas = int(depths[-1]), int(weights[-1]), int(counts[-1])


def _windows(body: memoryview) -> Iterator[tuple[int, Bytes, Mask]]:
    """Parts of a body: where they begin, their bytes, and which of those are outside of texts."""
    inside, escaped = 0, False
    for start in range(0, len(body), PIECE_BYTES):
        window = np.frombuffer(body[start : start + PIECE_BYTES], np.uint8)
        quotes = window == ord('"')
        slashes = window == ord("\\")
        if escaped or slashes.any():
            after_slash, escaped = _escaped(slashes, escaped)
            quotes &= ~after_slash
        within = (inside + np.cumsum(quotes)) & 1
        inside = int(within[-1])
        yield start, window, within == 0


def _escaped(slashes: Mask, escaped: bool) -> tuple[Mask, bool]:
    """Which bytes follow an odd run of backslashes, and whether the byte after the last does.

    Args:
        slashes: which bytes are backslashes.
        escaped: whether the first byte follows an odd run.
    """
    places = np.arange(len(slashes))
    # For each place, the last one up to it that is no backslash; the run that comes from before
    # counts as one backslash or none.
    last = np.maximum.accumulate(np.where(slashes, -2 if escaped else -1, places))
    odd = (places - last) % 2 == 1
    return np.concatenate(([escaped], odd[:-1])), bool(odd[-1])


def _compact(values: list[Any]) -> list[Any] | TokenLists:
    """Lists of token ids as arrays; anything else as it is."""
    if set(map(type, values)) != {list}:
        return values
    if not set(map(type, chain.from_iterable(values))) <= {int}:
        return values
    try:
        return TokenLists.of(values)
    except OverflowError:  # no token id; `request/check.py` names it
        return values


def _plain(piece: list[Any] | TokenLists) -> list[Any]:
    return [one.tolist() for one in piece] if isinstance(piece, TokenLists) else piece


def _joined(pieces: list[TokenLists]) -> TokenLists:
    """Lists end to end."""
    lengths = np.concatenate([piece.lengths for piece in pieces])
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return TokenLists(np.concatenate([piece.tokens for piece in pieces]), offsets)
