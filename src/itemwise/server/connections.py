"""Limits of connections: how many may be open, and how long one may stay silent."""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from itemwise.server.errors import error_response

SILENCE_S = 30.0  # time that a client has to send the headers of its first request


def protocol(max_connections: int, silence_s: float = SILENCE_S) -> type[H11Protocol]:
    """An HTTP protocol for uvicorn.

    A connection beyond `max_connections` gets `too_many_connections` for every request. One beyond
    twice as many, or without a request `silence_s` seconds after it opened, is closed.
    """

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        response = error_response(
            "too_many_connections",
            f"{max_connections} connections are open, the maximum (`max_connections`); try again "
            "later, or open fewer connections",
            headers={"Connection": "close", "Retry-After": "1"},
        )
        await response(scope, receive, send)

    class Bounded(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > 2 * max_connections:
                transport.abort()
            elif len(self.connections) > max_connections:
                self.app = refuse
            self._silence = self.loop.call_later(silence_s, self._cut_off)

        def connection_lost(self, exc: Exception | None) -> None:
            self._silence.cancel()
            super().connection_lost(exc)

        def _cut_off(self) -> None:
            if self.cycle is None:  # no request has begun
                self.transport.abort()

    return Bounded
