"""Compressed bodies are read, bounded by what they become, or refused by name."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator

import pytest

from itemwise.config import ServerConfig
from tests.server.fakes import GOOD, GOOD_SCORES, FakeScorer, get, running_server, send, wait_until

BODY = json.dumps(GOOD).encode()


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(ServerConfig("m", max_body_bytes=10_000), FakeScorer) as made:
        wait_until(lambda: get(f"{made}/health").status_code == 200)
        yield made


def ask(url: str, body: bytes, encoding: str) -> tuple[int, str]:
    headers = {"Content-Encoding": encoding}
    answer = send("POST", f"{url}/v1/score", content=body, headers=headers)
    if answer.status_code == 200:
        assert answer.json()["scores"] == GOOD_SCORES
        return 200, ""
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
        ("deflate, gzip", lambda data: gzip.compress(zlib.compress(data))),
    ],
)
def test_encoded_body_is_read(url: str, encoding: str, encode: Callable[[bytes], bytes]) -> None:
    assert ask(url, encode(BODY), encoding) == (200, "")


def test_limit_holds_for_what_a_body_becomes(url: str) -> None:
    assert ask(url, gzip.compress(b" " * 10_000_000), "gzip") == (413, "body_too_large")
    assert ask(url, gzip.compress(BODY + b" " * (10_000 - len(BODY))), "gzip") == (200, "")


@pytest.mark.parametrize(
    ("body", "encoding", "status", "code"),
    [
        (BODY, "br", 415, "unsupported_encoding"),
        (BODY, "zstd", 415, "unsupported_encoding"),
        (BODY, "gzip, gzip, gzip", 415, "unsupported_encoding"),
        (BODY, "gzip", 400, "invalid_json"),
        (gzip.compress(BODY, mtime=0)[:-12], "gzip", 400, "invalid_json"),
    ],
)
def test_what_cannot_be_read_is_refused(
    url: str, body: bytes, encoding: str, status: int, code: str
) -> None:
    assert ask(url, body, encoding) == (status, code)
