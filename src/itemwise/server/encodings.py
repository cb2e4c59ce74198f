"""Bodies that clients compress, with a limit on what they become."""

from __future__ import annotations

import zlib

import zstandard
from starlette.types import Scope

from itemwise.errors import RefusedError, RequestError

MAX_ENCODINGS = 2  # one after the other; each takes the time of a whole body
MAX_MEMBERS = 64  # of gzip data; what follows a member is copied
_GZIP_OR_ZLIB, _RAW = 47, -15  # `wbits` of zlib
_PIECE_BYTES = 1024 * 1024
_ZSTD_WINDOW = 8 * 1024 * 1024  # memory that RFC 8878 asks a decoder to have for any frame


def decoded(scope: Scope, body: bytearray, max_bytes: int) -> bytearray:
    """The body as it was before its `Content-Encoding`: zstd, gzip, deflate, or none.

    Raises:
        RefusedError: another encoding, or several parts (`unsupported_encoding`), or more than
            `max_bytes` (`body_too_large`).
        RequestError: it is not what the header says (`invalid_json`).
    """
    if _header(scope, b"content-type").startswith(b"multipart/"):
        raise RefusedError(
            "unsupported_encoding",
            "the body has several parts, as clients send images; expected JSON: images are not "
            "read by this server",
        )
    names = _header(scope, b"content-encoding").decode("latin-1").replace(" ", "").split(",")
    names = [name for name in names if name not in ("", "identity")]
    if len(names) > MAX_ENCODINGS:
        raise RefusedError(
            "unsupported_encoding",
            f"the body has {len(names)} encodings, expected at most {MAX_ENCODINGS}",
        )
    for name in reversed(names):
        if name not in ("zstd", "gzip", "x-gzip", "deflate"):
            raise RefusedError(
                "unsupported_encoding",
                f"the body has the encoding {name[:40]!r}, expected zstd, gzip, deflate or none; "
                "send it uncompressed",
            )
        body = (
            _decompressed(body, max_bytes) if name == "zstd" else _inflated(body, name, max_bytes)
        )
    return body


def _header(scope: Scope, wanted: bytes) -> bytes:
    return b",".join(bytes(value) for name, value in scope["headers"] if name == wanted).lower()


def _inflated(body: bytearray, name: str, max_bytes: int) -> bytearray:
    """What gzip or deflate data becomes; gzip data may have several members."""
    raw = name == "deflate" and not _has_zlib_header(body)
    found = bytearray()
    rest: bytes | bytearray = body
    for _ in range(1 if name == "deflate" else MAX_MEMBERS):
        work = zlib.decompressobj(_RAW if raw else _GZIP_OR_ZLIB)
        try:
            found += work.decompress(rest, max_bytes + 1 - len(found))
        except zlib.error as error:
            raise RequestError("invalid_json", f"the body is not {name}: {error}") from None
        _check_length(found, max_bytes)
        if not work.eof:
            raise RequestError("invalid_json", f"the body ends before its {name} data does")
        rest = work.unused_data
        if not rest.strip(b"\0"):  # which may fill up the last block
            return found
    raise RequestError("invalid_json", f"the body goes on after its {name} data")


def _decompressed(body: bytearray, max_bytes: int) -> bytearray:
    """What zstd data becomes; where it ends too early, the JSON in it does."""
    work = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    try:
        with work.stream_reader(body, read_across_frames=True) as reader:
            found = bytearray()
            while len(found) <= max_bytes and (piece := reader.read(_PIECE_BYTES)):
                found += piece
    except zstandard.ZstdError as error:
        raise RequestError("invalid_json", f"the body is not zstd: {error}") from None
    _check_length(found, max_bytes)
    return found


def _check_length(found: bytearray, max_bytes: int) -> None:
    if len(found) > max_bytes:
        raise RefusedError(
            "body_too_large",
            f"the body is longer than {max_bytes} bytes once decompressed; send fewer items at a "
            "time",
        )


def _has_zlib_header(body: bytearray) -> bool:
    """Whether deflate data has the header that RFC 9110 asks for, and some clients leave out."""
    return len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
