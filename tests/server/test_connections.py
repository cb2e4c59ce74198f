"""What `connections.py` relies on in a class of uvicorn's that is not public."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from itemwise.server.connections import protocol

MAX_CONNECTIONS = 2
SILENCE_S = 0.01


class FakeTransport(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = asyncio.Event()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted.set()

    def close(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204})
    await send({"type": "http.response.body"})


class Connections:
    """Connections as uvicorn makes them, of one server."""

    def __init__(self, silence_s: float = 30) -> None:
        self.config = uvicorn.Config(
            answer, log_config=None, http=protocol(MAX_CONNECTIONS, silence_s)
        )
        self.config.load()
        self.state = ServerState()

    def open(self) -> tuple[H11Protocol, FakeTransport]:
        made = cast(type[H11Protocol], self.config.http_protocol_class)(
            self.config, self.state, app_state={}
        )
        transport = FakeTransport()
        made.connection_made(transport)
        return made, transport


async def ask(connection: H11Protocol) -> None:
    """Sends a request and waits for the end of its task."""
    connection.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.gather(*connection.tasks)


def test_installed_uvicorn_is_as_expected() -> None:
    async def check() -> None:
        connections = Connections()
        first, transport = connections.open()
        second, _ = connections.open()
        assert first.connections is second.connections is connections.state.connections
        assert first.connections == {first, second}
        assert first.loop is asyncio.get_running_loop()
        assert first.transport is transport
        assert first.app is connections.config.loaded_app
        assert first.cycle is None, "no request has begun"
        await ask(first)
        assert first.cycle is not None
        for connection in (first, second):
            connection.connection_lost(None)
        assert not connections.state.connections

    asyncio.run(check())


def test_connections_beyond_the_bound_are_refused_and_then_cut_off() -> None:
    async def check() -> None:
        connections = Connections()
        opened = [connections.open() for _ in range(2 * MAX_CONNECTIONS + 1)]
        statuses = []
        for connection, transport in opened[:-1]:
            await ask(connection)
            statuses.append(transport.written.split()[1])
        assert statuses == [b"204", b"204", b"503", b"503"]
        aborted = [transport.aborted.is_set() for _, transport in opened]
        assert aborted == [False] * 4 + [True]
        for connection, _ in opened:
            connection.connection_lost(None)

    asyncio.run(check())


@pytest.mark.parametrize("speaks", [False, True])
def test_only_silent_connections_are_cut_off(speaks: bool) -> None:
    async def check() -> None:
        connection, transport = Connections(SILENCE_S).open()
        if speaks:
            await ask(connection)
            await asyncio.sleep(2 * SILENCE_S)
            assert not transport.aborted.is_set()
        else:
            await asyncio.wait_for(transport.aborted.wait(), 20)
        connection.connection_lost(None)

    asyncio.run(check())
