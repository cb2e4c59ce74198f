"""Compressed bodies are read, bounded by what they become, or refused by name."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard

from itemwise.config import ServerConfig
from itemwise.server.encodings import MAX_MEMBERS
from tests.server.fakes import GOOD, GOOD_SCORES, FakeScorer, get, running_server, send, wait_until

BODY = json.dumps(GOOD).encode()


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


def _wide(data: bytes) -> bytes:
    """A zstd frame whose decoder would need 64 MiB."""
    parameters = zstandard.ZstdCompressionParameters(window_log=26, write_content_size=False)
    work = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return work.compress(data) + work.flush()


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
        ("zstd", zstandard.compress),
        ("zstd", lambda data: zstandard.compress(data[:20]) + zstandard.compress(data[20:])),
        ("gzip", lambda data: gzip.compress(data[:20]) + gzip.compress(data[20:])),
        ("gzip", lambda data: gzip.compress(data) + bytes(9)),
        ("gzip, zstd", lambda data: zstandard.compress(gzip.compress(data))),
        ("identity", bytes),
        ("deflate, gzip", lambda data: gzip.compress(zlib.compress(data))),
    ],
)
def test_encoded_body_is_read(url: str, encoding: str, encode: Callable[[bytes], bytes]) -> None:
    assert ask(url, encode(BODY), encoding) == (200, "")


def test_limit_holds_for_what_a_body_becomes(url: str) -> None:
    for encoding, compress in (("gzip", gzip.compress), ("zstd", zstandard.compress)):
        assert ask(url, compress(b" " * 10_000_000), encoding) == (413, "body_too_large")
        assert ask(url, compress(BODY + b" " * (10_000 - len(BODY))), encoding) == (200, "")


@pytest.mark.parametrize(
    ("body", "encoding", "status", "code"),
    [
        (BODY, "br", 415, "unsupported_encoding"),
        (BODY, "zstd", 400, "invalid_json"),
        (zstandard.compress(BODY)[:-12], "zstd", 400, "invalid_json"),
        (_wide(BODY), "zstd", 400, "invalid_json"),
        (BODY, "gzip, gzip, gzip", 415, "unsupported_encoding"),
        (BODY, "gzip", 400, "invalid_json"),
        (gzip.compress(BODY) * 2, "gzip", 400, "invalid_json"),
        (gzip.compress(BODY) + b"x", "gzip", 400, "invalid_json"),
        (gzip.compress(BODY) + gzip.compress(b" ") * MAX_MEMBERS, "gzip", 400, "invalid_json"),
        (gzip.compress(BODY) + gzip.compress(b" " * 10_000), "gzip", 413, "body_too_large"),
        (zlib.compress(BODY) + b"x", "deflate", 400, "invalid_json"),
        (gzip.compress(BODY, mtime=0)[:-12], "gzip", 400, "invalid_json"),
    ],
)
def test_what_cannot_be_read_is_refused(
    url: str, body: bytes, encoding: str, status: int, code: str
) -> None:
    assert ask(url, body, encoding) == (status, code)


def test_a_form_with_images_is_refused_in_the_format_of_the_path(url: str) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = send("POST", f"{url}/v1/systemone", content=b"--x--", headers=headers)
    assert answer.status_code == 415
    assert "images" in answer.json()["detail"]["message"]
