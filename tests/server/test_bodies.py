"""Bodies under way: bounded together, given up when they stall, worked on in lanes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect

from itemwise.errors import QueueFullError, RefusedError
from itemwise.server import bodies as module
from itemwise.server.bodies import BODIES, SHORT_BYTES, Bodies

WAIT_S = 20
MOST = 2 * SHORT_BYTES


class Upload:
    """A request whose body comes piece by piece, as the test sends it."""

    def __init__(self, bodies: Bodies, declared: int | None = None) -> None:
        headers = [] if declared is None else [(b"content-length", b"%d" % declared)]
        self._pieces: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        request = Request({"type": "http", "headers": headers}, self._pieces.get)
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._read(bodies, request))

    async def _read(self, bodies: Bodies, request: Request) -> int:
        async with bodies.read(request) as body:
            await self.end.wait()
            return len(body)

    async def send(self, size: int, *, last: bool = False) -> None:
        self._pieces.put_nowait(
            {"type": "http.request", "body": bytes(size), "more_body": not last}
        )
        while not self._pieces.empty():  # noqa: ASYNC110  # nothing tells it
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)

    def trickle(self) -> None:
        """Sends a byte, whether or not anybody reads it."""
        self._pieces.put_nowait({"type": "http.request", "body": b" ", "more_body": True})

    def leave(self) -> None:
        self._pieces.put_nowait({"type": "http.disconnect"})


def run(check: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await check()

    asyncio.run(bounded())


def test_all_bodies_together_are_bounded() -> None:
    async def check() -> None:
        bodies = Bodies(MOST)
        stalled = [Upload(bodies) for _ in range(BODIES)]
        for each in stalled[:3]:
            await each.send(MOST - 1)
        await stalled[3].send(SHORT_BYTES)
        await stalled[3].send(10)
        with pytest.raises(QueueFullError) as caught:
            await stalled[3].task
        assert caught.value.retry_after_s > 0
        with pytest.raises(QueueFullError):
            await Upload(bodies, declared=MOST).task
        short = Upload(bodies, declared=SHORT_BYTES)
        await short.send(SHORT_BYTES, last=True)
        short.end.set()
        assert await short.task == SHORT_BYTES
        stalled[0].leave()
        with pytest.raises(ClientDisconnect):
            await stalled[0].task
        await stalled[1].send(1, last=True)
        stalled[1].end.set()
        assert await stalled[1].task == MOST
        assert bodies.held_bytes == MOST - 1
        stalled[2].task.cancel()
        await asyncio.gather(stalled[2].task, return_exceptions=True)
        assert bodies.held_bytes == 0

    run(check)


@pytest.mark.parametrize("declared", [MOST + 1, 10**30, None])
def test_long_body_is_refused(declared: int | None) -> None:
    async def check() -> None:
        bodies = Bodies(MOST)
        upload = Upload(bodies, declared)
        if declared is None:
            await upload.send(MOST)
            await upload.send(1)
        with pytest.raises(RefusedError) as caught:
            await upload.task
        assert caught.value.code == "body_too_large"
        assert bodies.held_bytes == 0

    run(check)


@pytest.mark.parametrize("name", ["BODY_S", "SILENCE_S"])
def test_slow_body_is_given_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, name, 0.05)

    async def check() -> None:
        bodies = Bodies(MOST)
        upload = Upload(bodies)
        await upload.send(10)
        while name == "BODY_S" and not upload.task.done():  # it comes slowly, and never pauses
            upload.trickle()
            await asyncio.sleep(0.005)
        with pytest.raises(RefusedError) as caught:
            await upload.task
        assert caught.value.code == "body_too_slow"
        assert bodies.held_bytes == 0

    run(check)


def test_short_body_does_not_wait_for_long_ones() -> None:
    async def check() -> None:
        bodies, go = Bodies(MOST), threading.Event()
        ran: list[int] = []

        def work(body: bytearray) -> int:
            if len(body) > SHORT_BYTES:
                assert go.wait(WAIT_S)
            ran.append(len(body))
            return len(body)

        long = [asyncio.create_task(bodies.work(work, bytearray(MOST))) for _ in range(3)]
        for size in (1, 100_000, SHORT_BYTES):
            assert await bodies.work(work, bytearray(size)) == size
        assert ran == [1, 100_000, SHORT_BYTES]
        go.set()
        assert await asyncio.gather(*long) == [MOST] * 3

    run(check)
