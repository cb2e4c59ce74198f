"""A request and its answer as messages between processes, and an app that answers one.

The front door (`server/front.py`) sends them to the processes that have an engine. What carries
them there, such as Ray, is not known here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Scope

from itemwise.server.record import record_of

Headers = tuple[tuple[bytes, bytes], ...]
# The front door has these of its own.
_OWN_HEADERS = frozenset((b"x-request-id", b"server-timing", b"content-length"))


@dataclass(frozen=True)
class Ask:
    """A request.

    Attributes:
        method: HTTP method.
        path: without the prefix under which a proxy serves the API.
        query_string: what follows the question mark, encoded.
        headers: names in lower case, and values.
        body: all of it.
    """

    method: str
    path: str
    query_string: bytes = b""
    headers: Headers = ()
    body: bytes | bytearray = b""


@dataclass(frozen=True)
class Answer:
    """An answer, and what its record says.

    Attributes:
        status: HTTP status.
        headers: names in lower case, and values.
        body: all of it.
        code: stable name of the error, `ok` if there was none.
        counts: items, tokens and cached tokens.
        stages: seconds in each stage, by their names in `record.STAGES`.
    """

    status: int
    headers: Headers
    body: bytes
    code: str = "ok"
    counts: tuple[int, int, int] = (0, 0, 0)
    stages: Mapping[str, float] = field(default_factory=dict)


class ReplicaLostError(Exception):
    """The process that had the request ended before it answered; another one may be asked."""


class Replicas(Protocol):
    """The processes that have an engine."""

    async def ask(self, ask: Ask, key: str) -> Answer:
        """What one of them answers; if the caller is cancelled, so is the request there.

        Args:
            ask: the request.
            key: equal for requests that share a query; empty if nothing is known of that.

        Raises:
            ReplicaLostError: the process ended.
            QueueFullError: too many requests wait for a process.
            RefusedError: there are no processes, and none are being started.
        """
        ...

    async def ask_all(self, ask: Ask) -> list[tuple[str, Answer]]:
        """The name and the answer of each; those that end meanwhile are left out."""
        ...


async def answer(app: ASGIApp, ask: Ask) -> Answer:
    """What an app answers; if the caller is cancelled, so is the request."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "http",
        "method": ask.method,
        "path": ask.path,
        "raw_path": ask.path.encode(),
        "query_string": ask.query_string,
        "root_path": "",
        "headers": list(ask.headers),
        "client": None,
        "server": None,
    }
    unread = [ask.body]
    left = asyncio.Event()
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    running = asyncio.ensure_future(app(scope, receive, send))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        # As when a client leaves, so that a thread that tokenises stops as well.
        left.set()
        await asyncio.wait((running,))
        raise
    record = record_of(scope)
    return Answer(
        sent[0]["status"],
        tuple((k, v) for k, v in sent[0]["headers"] if k not in _OWN_HEADERS),
        b"".join(message.get("body", b"") for message in sent[1:]),
        record.code,
        (record.items, record.tokens, record.cached_tokens),
        dict(record.stages),
    )
