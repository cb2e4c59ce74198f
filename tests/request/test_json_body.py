"""Large bodies are parsed as small ones, but in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itemwise.errors import RequestError
from itemwise.request import json_body
from itemwise.request.json_body import parse_body
from itemwise.types import TokenLists

MANY = 10**6
MIB = 1024 * 1024

numbers = st.integers(-(2**40), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(alphabet='ab,[]{}:"\\ \né\u2028😀', max_size=12)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
token_lists = st.lists(st.lists(st.integers(0, 999), max_size=5), max_size=12)
objects = st.dictionaries(texts, values | token_lists | st.lists(texts, max_size=9), max_size=6)


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Iterator[None]:
    """Every body is cut, and often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "WHOLE_BYTES", 0)
        patch.setattr(json_body, "PIECE_BYTES", 5)
        yield


def plain(value: Any) -> Any:
    """The value with lists in place of `TokenLists`."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return [one.tolist() for one in value] if isinstance(value, TokenLists) else value


def parsed(body: bytes) -> Any:
    """The value; None where the body is refused or no object."""
    try:
        return plain(parse_body(body, MANY))
    except RequestError as error:
        return None if error.code == "invalid_json" else error


def by_orjson(body: bytes) -> Any:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


@settings(max_examples=100)
@given(objects, st.sampled_from([None, 1]), st.booleans())
def test_pieces_make_the_whole(value: dict[str, Any], indent: int | None, ascii_: bool) -> None:
    body = json.dumps(value, indent=indent, ensure_ascii=ascii_).encode()
    assert parsed(body) == by_orjson(body)


@settings(max_examples=150)
@given(objects, st.data())
def test_damaged_bodies_are_refused_as_whole_ones_are(
    value: dict[str, Any], data: st.DataObject
) -> None:
    body = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body)))
        body[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from([b"", b",", b"[", b"]", b"{", b"}", b'"', b"\\", b":", b" ", b"1"])
        )
    assert parsed(bytes(body)) == by_orjson(bytes(body))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b"{}{}", b'{"a":[1,2],}', b'{"a":[1,,2]}', b'{"a":[1,2,]}', b'{,"a":1}']
    + [b'{"a":[1,2}', b'{"a":[1,2]x}', b'x{"a":1}', b'{"a":1}]', b'{"a":{"b":[1,2,3]}}', b"}{"]
    + [b'{"a":[[1],[2]],"a":[[3],[4]]}', b'{"a [":[[1],[2],[3]]}', b'{"a":[1,2] ,"b":3}'],
)
def test_edges_are_those_of_whole_bodies(body: bytes) -> None:
    assert parsed(body) == by_orjson(body)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"query":"é"}'.encode("latin-1"), "byte 10 is 0xe9, which is no UTF-8"),
        (b'{"a":[1,2,3],"query":"\xe9"}', "byte 22 is 0xe9, which is no UTF-8"),
        (b'{"a":["x","y","\xe9"]}', "byte 15 is 0xe9, which is no UTF-8"),
        ('{"é":[1,2,3],"b":NaN}'.encode(), "expected a JSON value: "),
        (b'{"a":[[1],[2],[3],,[4]]}', "the body is not JSON: "),
        (b"\xef\xbb\xbf{}", "yte order mark"),
    ],
)
def test_the_place_at_fault_is_that_in_the_body(
    body: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = body.find(b"NaN") if b"NaN" in body else body.find(b",,")
    for whole in (1 << 20, 0):
        monkeypatch.setattr(json_body, "WHOLE_BYTES", whole)
        with pytest.raises(RequestError) as caught:
            parse_body(body, MANY)
        assert caught.value.code == "invalid_json"
        assert said in str(caught.value)
    if place >= 0:
        assert int(str(caught.value).rpartition("byte ")[2]) - place in (0, 1)


@pytest.mark.parametrize("body", [b"[1,1]", b'"x"', b"7"])
def test_what_is_no_object_is_said_first(body: bytes) -> None:
    with pytest.raises(RequestError, match=r"expected \{"):
        parse_body(body, MANY)


def test_lists_of_ids_become_arrays() -> None:
    items = [[1, 2], [], [2**31 - 1]] * 9
    found = parse_body(orjson.dumps({"items": items}), MANY)["items"]
    assert isinstance(found, TokenLists)
    assert found == TokenLists.of(items)


@pytest.mark.parametrize("odd", [[2**31], [1.5], "text", [True], 7, [None], [[1]]])
def test_other_elements_stay_as_they_are(odd: Any) -> None:
    items = [[1, 2], [3], odd, [4]]
    assert parse_body(orjson.dumps({"items": items}), MANY)["items"] == items


def test_elements_are_counted_before_they_are_made() -> None:
    body = orjson.dumps({"items": [[1]] * 10, "query": [1, 2]})
    assert len(parse_body(body, 10)["items"]) == 10
    with pytest.raises(RequestError, match="`items` has more than 9 elements") as caught:
        parse_body(body, 9)
    assert (caught.value.code, caught.value.param) == ("too_many_items", "items")


GROWTH = """
import resource, sys
from itemwise.errors import RequestError
from itemwise.request.json_body import parse_body
unit, head, tail = (part.encode() for part in sys.argv[1:4])
body = head + unit * (20 * 1024 * 1024 // len(unit)) + unit.rstrip(b",") + tail
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
try:
    found = parse_body(body, 2**20)
    verdict = "ok"
except RequestError as error:
    verdict = error.code
print(verdict, (peak() - before) / len(body))
"""


@pytest.mark.parametrize(
    ("unit", "head", "tail", "verdict"),
    [
        ("[1],", '{"items":[', "]}", "too_many_items"),
        ("[],", '{"x":{"items":[', "]}}", "too_many_values"),
        ("{},", '{"items":[', "]}", "too_many_items"),
        ('"ab",', '{"items":[', "]}", "too_many_items"),
        ("300,", '{"query":[', "]}", "too_many_items"),
        ("[" + "300," * 30 + "1],", '{"items":[', "]}", "ok"),
        ("[" + "[1]," * 30 + "[1]],", '{"items":[', "]}", "too_many_values"),
        ('{"a":1,"b":[2]},', '{"items":[', "]}", "too_many_items"),
        ('"' + "word, " * 20 + '",', '{"items":[', "]}", "ok"),
        ("a,", '{"query":"', '"}', "ok"),
        ('"a":1,', "{", "}", "invalid_json"),
    ],
)
def test_memory_is_bounded_by_the_length(unit: str, head: str, tail: str, verdict: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", GROWTH, unit, head, tail], capture_output=True, text=True
    )
    found, growth = run.stdout.split()
    assert found == verdict
    assert float(growth) <= 8
