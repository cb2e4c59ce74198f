"""Bodies that clients compress, with a limit on what they become."""

from __future__ import annotations

import zlib

from starlette.types import Scope

from itemwise.errors import RefusedError, RequestError

MAX_ENCODINGS = 2  # one after the other; each takes the time of a whole body
_GZIP_OR_ZLIB, _RAW = 47, -15  # `wbits` of zlib


def decoded(scope: Scope, body: bytearray, max_bytes: int) -> bytearray:
    """The body as it was before its `Content-Encoding`: gzip, deflate, or none.

    Raises:
        RefusedError: another encoding (`unsupported_encoding`), or more than `max_bytes`
            (`body_too_large`).
        RequestError: it is not what the header says (`invalid_json`).
    """
    values = [bytes(value) for name, value in scope["headers"] if name == b"content-encoding"]
    names = b",".join(values).decode("latin-1").lower().replace(" ", "").split(",")
    names = [name for name in names if name not in ("", "identity")]
    if len(names) > MAX_ENCODINGS:
        raise RefusedError(
            "unsupported_encoding",
            f"the body has {len(names)} encodings, expected at most {MAX_ENCODINGS}",
        )
    for name in reversed(names):
        if name not in ("gzip", "x-gzip", "deflate"):
            raise RefusedError(
                "unsupported_encoding",
                f"the body has the encoding {name[:40]!r}, expected gzip, deflate or none; send it "
                "uncompressed",
            )
        body = _inflated(body, name, max_bytes)
    return body


def _inflated(body: bytearray, name: str, max_bytes: int) -> bytearray:
    raw = name == "deflate" and not _has_zlib_header(body)
    work = zlib.decompressobj(_RAW if raw else _GZIP_OR_ZLIB)
    try:
        found = bytearray(work.decompress(body, max_bytes + 1))
    except zlib.error as error:
        raise RequestError("invalid_json", f"the body is not {name}: {error}") from None
    if len(found) > max_bytes:
        raise RefusedError(
            "body_too_large",
            f"the body is longer than {max_bytes} bytes once decompressed; send fewer items at a "
            "time",
        )
    if not work.eof:
        raise RequestError("invalid_json", f"the body ends before its {name} data does")
    return found


def _has_zlib_header(body: bytearray) -> bool:
    """Whether deflate data has the header that RFC 9110 asks for, and some clients leave out."""
    return len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
