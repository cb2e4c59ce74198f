"""How many connections may be open, and how long one may say nothing."""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from itemwise.server.errors import error_response

SILENCE_S = 30.0  # given to a client to send the head of its first request


def protocol(max_connections: int, silence_s: float = SILENCE_S) -> type[H11Protocol]:
    """An HTTP protocol for uvicorn.

    A client beyond `max_connections` is answered with `too_many_connections`, whatever it asks
    for; one beyond twice as many, or silent for `silence_s` seconds from the first, is cut off.
    """

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        response = error_response(
            "too_many_connections",
            f"{max_connections} connections are open, the most allowed (`max_connections`); try "
            "again later, or use fewer",
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
