"""Bodies under way: all of them together take bounded memory, and short ones do not wait for long.

async with bodies.read(request) as body:     # holds its bytes until the block ends
made = await bodies.work(make, body)     # on a worker thread, in the lane of its length
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request

from itemwise.errors import QueueFullError, RefusedError

T = TypeVar("T")

BODY_S = 60.0  # time that a client has to send its body
SILENCE_S = 15.0  # of which it may be silent so long at a time
BODIES = 4  # bodies of the maximum length that are held at a time
SHORT_BYTES = 1024 * 1024  # the last quarter of the memory is for bodies up to this length
# Worker threads by length of the body. A thread holds others up while it parses, so there are few.
LANES = ((64 * 1024, 8), (SHORT_BYTES, 2), (None, 1))


class Bodies:
    """Reads bodies into bounded memory, and works on them in bounded threads.

    Args:
        max_bytes: of one body.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_held = max(BODIES * max_bytes, 2 * SHORT_BYTES)
        self._held = 0
        self._lanes: list[CapacityLimiter] = []

    @property
    def held_bytes(self) -> int:
        """Bytes of all bodies that are being read or worked on."""
        return self._held

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """The body of a request, counted as held until the block ends.

        Raises:
            RefusedError: it is too long or too slow.
            QueueFullError: too many bytes of other bodies are held.
        """
        body = bytearray()
        declared = request.headers.get("content-length", "")
        if declared.isdecimal():
            self._check(int(declared) if len(declared) < 19 else 10**19)
        try:
            await self._fill(body, request)
            yield body
        finally:
            self._held -= len(body)

    async def work(
        self, make: Callable[[bytearray], T], body: bytearray, *, grows: bool = False
    ) -> T:
        """`make(body)` on a worker thread; bodies of about its length take turns.

        One that `grows`, since it is compressed, takes turns with the longest.
        """
        if not self._lanes:  # a limiter belongs to an event loop
            self._lanes = [CapacityLimiter(threads) for _, threads in LANES]
        lane = next(
            limiter
            for limiter, (most, _) in zip(self._lanes, LANES, strict=True)
            if most is None or (len(body) <= most and not grows)
        )
        return await to_thread.run_sync(make, body, limiter=lane)

    async def _fill(self, body: bytearray, request: Request) -> None:
        stream = aiter(request.stream())
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        chunk = await anext(stream, None)
                    if chunk is None:
                        return
                    self._check(len(body) + len(chunk), len(body))
                    body += chunk
                    self._held += len(chunk)
        except TimeoutError:
            raise RefusedError(
                "body_too_slow",
                f"the body did not arrive within {BODY_S:g} s, or paused for {SILENCE_S:g} s; send "
                "it faster, or send fewer items at a time",
            ) from None

    def _check(self, length: int, held: int = 0) -> None:
        """Returns if a body of which `held` bytes are here may grow to `length`."""
        if length > self._max_bytes:
            raise RefusedError(
                "body_too_large",
                f"the body is longer than {self._max_bytes} bytes; send fewer items at a time",
            )
        most = self._max_held if length <= SHORT_BYTES else self._max_held * 3 // 4
        if self._held - held + length > most:
            raise QueueFullError(
                f"the server holds {self._held} bytes of bodies and this one would add {length}; "
                f"the limit is {most} ({BODIES} times `max_body_bytes`); try again later",
                retry_after_s=1.0,
            )
