"""HTTP/1.1 over real sockets: framing, the limit of every state, and turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from itemwise.server.connections import ConnectionLimits
from itemwise.server.http1 import FREE_PIECES, protocol

WAIT_S = 20
SOON_S = 0.2
NEVER_S = 60.0
BIG = 32 * 1024 * 1024  # more than the kernel's buffers take
HEAD = b"HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /anything " + HEAD + b"\r\n"
PROBE = b"GET /live " + HEAD + b"\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """`/hold` never answers, `/big` answers much, `/echo` its body, `/deaf` without reading it."""
    path, body = scope["path"], path_of(scope).encode()
    if path == "/hold":
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    if path == "/echo":
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
    if path == "/big":
        body = bytes(BIG)
    if path == "/fail":
        raise RuntimeError("planted fault")
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def path_of(scope: Scope) -> str:
    return f"{scope['method']} {scope['path']}?{scope['query_string'].decode()}"


def limits(max_connections: int = 50, **seconds: float) -> ConnectionLimits:
    """No state ends, unless it is named."""
    names = ("head_s", "body_s", "answer_s", "keep_alive_s", "linger_s")
    return ConnectionLimits(
        max_connections, spare=2, **{**dict.fromkeys(names, NEVER_S), **seconds}
    )


@asynccontextmanager
async def serving(bounds: ConnectionLimits) -> AsyncIterator[tuple[int, ServerState]]:
    """The port of a server of `app`, and uvicorn's state of it."""
    config = uvicorn.Config(app, log_config=None, http=protocol(bounds))
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    factory: Callable[..., Any] = config.http_protocol_class
    server = await loop.create_server(
        lambda: factory(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1], state
    finally:
        while Client.opened:
            Client.opened.pop().close()
        server.close()
        for connection in list(state.connections):
            connection.abort()  # type: ignore[union-attr]
        await asyncio.gather(*state.tasks, return_exceptions=True)


class Client:
    """A raw connection, closed when its server ends."""

    opened: ClassVar[list[Client]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.task: asyncio.Task[None] | None = None
        self.opened.append(self)

    def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
        self.writer.transport.abort()

    @classmethod
    async def open(cls, port: int, first: bytes = b"") -> Client:
        made = cls(*await asyncio.open_connection("127.0.0.1", port))
        made.writer.write(first)
        return made

    async def status(self) -> int:
        """Reads an answer and gives its status."""
        return (await self.answer())[0]

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head and body of the next answer."""
        async with asyncio.timeout(WAIT_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
            return int(head.split()[1]), head, await self.reader.readexactly(length)

    async def is_closed(self) -> bool:
        """Waits until the server has closed the connection."""
        async with asyncio.timeout(WAIT_S):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True

    async def stays_open(self, seconds: float = 2 * SOON_S) -> bool:
        try:
            await asyncio.wait_for(self.reader.read(1), seconds)
        except TimeoutError:
            return True
        return False


async def until(happened: Callable[[], object]) -> None:
    """Returns once `happened()`, fails after a while."""
    async with asyncio.timeout(WAIT_S):
        while not happened():  # noqa: ASYNC110  # nothing tells it
            await asyncio.sleep(0.01)


def run(check: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(check())  # type: ignore[arg-type]


def one(bounds: ConnectionLimits, sent: bytes) -> tuple[int, bytes, bytes]:
    """The answer to what one connection sends."""

    async def ask() -> tuple[int, bytes, bytes]:
        async with serving(bounds) as (port, _):
            return await (await Client.open(port, sent)).answer()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        (b"/a/b?c=d", b"GET /a/b?c=d"),
        (b"/a%20b", b"GET /a b?"),
        (b"http://host/a?b", b"GET /a?b"),
        (b"HTTP://host", b"GET /?"),
        (b"*", b"GET *?"),
    ],
)
def test_target_becomes_path_and_query(target: bytes, seen: bytes) -> None:
    assert one(limits(), b"GET " + target + b" " + HEAD + b"\r\n")[2] == seen


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_body_arrives_whole(size: int, chunked: bool) -> None:
    body = bytes(index % 251 for index in range(1000)) * (size // 1000 + 1)
    body = body[:size]
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    sent = (b"%x\r\n%s\r\n" % (size, body) if size else b"") + b"0\r\n\r\n" if chunked else body
    answer = one(limits(), b"POST /echo " + HEAD + framing + b"\r\n\r\n" + sent)
    assert (answer[0], answer[2]) == (200, body)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def check() -> None:
        async with serving(limits()) as (port, _):
            posts = b"".join(
                b"POST /echo " + HEAD + b"Content-Length: 1\r\n\r\n%d" % index
                for index in range(10)
            )
            client = await Client.open(port, posts + GET)
            bodies = [(await client.answer())[2] for _ in range(11)]
            assert bodies == [b"%d" % index for index in range(10)] + [b"GET /anything?"]

    run(check)


def test_empty_lines_before_a_request_count_for_nothing() -> None:
    post = b"POST /echo " + HEAD + b"Content-Length: 2\r\n\r\nab"

    async def check() -> None:
        async with serving(limits()) as (port, _):
            client = await Client.open(port, b"\r\n\r\n" + post + b"\r\n" + post + b"\r\n")
            for _ in range(2):
                assert (await client.answer())[2] == b"ab"
            client.writer.write(b"\r\n")
            await client.writer.drain()
            client.writer.write(post)
            assert (await client.answer())[2] == b"ab"

    run(check)


def test_client_who_expects_it_is_asked_for_the_body() -> None:
    async def check() -> None:
        async with serving(limits()) as (port, _):
            head = HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
            client = await Client.open(port, b"POST /echo " + head)
            async with asyncio.timeout(WAIT_S):
                assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            client.writer.write(b"ab")
            assert (await client.answer())[2] == b"ab"
            deaf = await Client.open(port, b"POST /deaf " + head)
            assert await deaf.status() == 200, "not 100: nobody wants the body"
            assert await deaf.is_closed()

    run(check)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"GARBAGE\r\n\r\n", b"illegal request line: `GARBAGE`"),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", b"expected HTTP/1.1 or 1.0"),
        (b"GET / HTTP/1.1\r\n\r\n", b"Host"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000, b"longer than 65536 bytes"),
        (b"POST /echo " + HEAD + b"Content-Length: x\r\n\r\n", b"bad Content-Length"),
        (
            b"POST /echo "
            + HEAD
            + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            + GET,
            b"both `Content-Length` and `Transfer-Encoding`",
        ),
        (b"POST /echo " + HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"illegal chunk"),
        (
            b"POST /echo "
            + HEAD
            + b"Transfer-Encoding: chunked\r\n\r\n"
            + b"1\r\na\r\n" * (FREE_PIECES + 100),
            b"too many small pieces",
        ),
    ],
)
def test_what_is_no_request_is_refused_in_words(sent: bytes, said: bytes) -> None:
    async def check() -> None:
        async with serving(limits()) as (port, state):
            client = await Client.open(port, sent)
            status, head, body = await client.answer()
            assert status == 400
            assert b"x-request-id: " in head
            assert b'"code":"invalid_request"' in body
            assert said in body
            assert b"bytearray" not in body
            assert await client.is_closed()
            client.writer.close()
            await until(lambda: not (state.tasks or state.connections))

    run(check)


def test_answer_reaches_a_client_that_still_sends_its_body() -> None:
    async def check() -> None:
        async with serving(limits()) as (port, _):
            head = b"POST /deaf " + HEAD + b"Content-Length: %d\r\n\r\n" % BIG
            client = await Client.open(port, head)
            client.writer.write(bytes(BIG))
            await client.writer.drain()
            status, head, _ = await client.answer()
            assert (status, b"connection: close" in head) == (200, True)
            assert await client.is_closed()

    run(check)


def test_client_who_leaves_before_its_refusal_is_no_failure(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: object) -> None:
        raise OSError("planted: the socket is not connected")

    monkeypatch.setattr("asyncio.selector_events._SelectorSocketTransport.write_eof", gone)

    async def check() -> None:
        async with serving(limits()) as (port, _):
            client = await Client.open(port, b"POST /deaf " + HEAD + b"Content-Length: 9\r\n\r\n")
            assert await client.status() == 200

    run(check)
    assert not caplog.records


async def silent(port: int) -> Client:
    return await Client.open(port)


async def trickles_a_head(port: int) -> Client:
    return await trickling(await Client.open(port, b"GET / HTTP/1.1\r\nHost: a\r\nX: "))


async def trickles_a_second_head(port: int) -> Client:
    client = await Client.open(port, GET)
    assert await client.status() == 200
    return await trickling(client)


async def stops_in_a_second_head(port: int) -> Client:
    client = await Client.open(port, GET)
    assert await client.status() == 200
    client.writer.write(b"G")
    return client


async def stops_in_a_body(port: int) -> Client:
    return await Client.open(port, b"POST /echo " + HEAD + b"Content-Length: 9\r\n\r\n{")


async def idles_after_an_answer(port: int) -> Client:
    client = await Client.open(port, GET)
    assert await client.status() == 200
    return client


async def trickles_after_its_answer(port: int) -> Client:
    client = await Client.open(port, b"POST /deaf " + HEAD + b"Content-Length: 9999\r\n\r\n")
    assert await client.status() == 200
    return await trickling(client)


async def trickling(client: Client) -> Client:
    async def trickle() -> None:
        while True:
            await asyncio.sleep(SOON_S / 4)
            client.writer.write(b"a")

    client.task = asyncio.create_task(trickle())
    return client


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("head_s", silent),
        ("head_s", trickles_a_head),
        ("head_s", trickles_a_second_head),
        ("head_s", stops_in_a_second_head),
        ("body_s", stops_in_a_body),
        ("keep_alive_s", idles_after_an_answer),
        ("linger_s", trickles_after_its_answer),
    ],
)
def test_every_state_ends(name: str, begin: Callable[[int], Awaitable[Client]]) -> None:
    async def check() -> None:
        short: dict[str, Any] = {name: SOON_S}
        async with serving(limits(**short)) as (port, state):
            started = time.monotonic()
            client = await begin(port)
            assert await client.is_closed()
            await until(lambda: not state.connections)
            assert time.monotonic() - started >= 0.9 * SOON_S
        others = {"head_s", "body_s", "answer_s", "keep_alive_s", "linger_s"} - {name}
        short = {**dict.fromkeys(others, SOON_S), name: NEVER_S}
        async with serving(limits(**short)) as (port, _):
            if name == "linger_s":  # our side is closed: it sees the end, but may go on sending
                return
            client = await begin(port)
            assert await client.stays_open()

    run(check)


def test_answer_that_nobody_reads_is_given_up() -> None:
    async def check() -> None:
        async with serving(limits(answer_s=SOON_S)) as (port, state):
            await Client.open(port, b"GET /big " + HEAD + b"\r\n")
            await until(lambda: state.connections)
            await until(lambda: not (state.tasks or state.connections))

    run(check)


def test_client_who_leaves_is_noticed_while_its_request_runs() -> None:
    async def check() -> None:
        async with serving(limits()) as (port, state):
            client = await Client.open(port, b"GET /hold " + HEAD + b"\r\n")
            await until(lambda: state.tasks)
            client.writer.close()
            await until(lambda: not (state.tasks or state.connections))

    run(check)


def test_failing_application_closes_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with serving(limits()) as (port, _):
            assert await (await Client.open(port, b"GET /fail " + HEAD + b"\r\n")).is_closed()
            assert await (await Client.open(port, GET)).status() == 200

    run(check)
    assert "planted fault" in caplog.text


def test_shutdown_closes_idle_connections_and_finishes_requests() -> None:
    async def check() -> None:
        async with serving(limits()) as (port, state):
            idle = await Client.open(port, GET)
            assert await idle.status() == 200
            busy = await Client.open(port, b"POST /echo " + HEAD + b"Content-Length: 1\r\n\r\n")
            await until(lambda: state.tasks)
            for connection in list(state.connections):
                connection.shutdown()
            assert await idle.is_closed()
            busy.writer.write(b"x")
            status, head, body = await busy.answer()
            assert (status, b"connection: close" in head, body) == (200, True, b"x")
            assert await busy.is_closed()

    run(check)


async def hold(port: int, number: int) -> list[Client]:
    """Connections with a request under way."""
    clients = [await Client.open(port, b"GET /hold " + HEAD + b"\r\n") for _ in range(number)]
    await asyncio.sleep(SOON_S)
    return clients


def test_probes_get_in_when_all_connections_are_busy() -> None:
    async def check() -> None:
        async with serving(limits(3)) as (port, _):
            busy = await hold(port, 3)
            for _ in range(5):
                refused = await Client.open(port, GET)
                status, head, body = await refused.answer()
                assert (status, b"retry-after" in head) == (503, True)
                assert b"too_many_connections" in body
                assert await refused.is_closed()
                probe = await Client.open(port, PROBE)
                status, head, _ = await probe.answer()
                assert (status, b"connection: close" in head) == (200, True)
            busy[0].writer.close()
            await asyncio.sleep(SOON_S)
            assert await (await Client.open(port, GET)).status() == 200

    run(check)


def test_silent_connections_beyond_the_maximum_make_room_for_probes() -> None:
    async def check() -> None:
        async with serving(limits(3)) as (port, state):
            await hold(port, 3)
            silent = [await Client.open(port) for _ in range(20)]
            await asyncio.sleep(SOON_S)
            assert len(state.connections) <= 5
            assert await (await Client.open(port, PROBE)).status() == 200
            assert await silent[0].is_closed()

    run(check)


def test_idle_connection_makes_room_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itemwise.server.connections.PATIENCE_S", 0.0)

    async def check() -> None:
        async with serving(limits(3)) as (port, _):
            busy = await hold(port, 1)
            idle = [await Client.open(port, GET) for _ in range(2)]
            assert [await client.status() for client in idle] == [200, 200]
            idle[0].writer.write(GET)  # so the other one is idle for longer
            assert await idle[0].status() == 200
            assert await (await Client.open(port, GET)).status() == 200
            assert await idle[1].is_closed()
            assert await idle[0].stays_open(SOON_S)
            assert await busy[0].stays_open(SOON_S)

    run(check)


def test_one_byte_chunks_do_not_hold_others_up() -> None:
    async def check() -> None:
        async with serving(limits(500)) as (port, _):
            head = b"POST /echo " + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
            chunks = b"1\r\na\r\n" * FREE_PIECES
            greedy = [await Client.open(port, head + chunks) for _ in range(20)]
            waits = []
            for _ in range(20):
                started = time.monotonic()
                assert await (await Client.open(port, PROBE)).status() == 200
                waits.append(time.monotonic() - started)
            assert max(waits) < 1
            for client in greedy:
                client.writer.write(b"0\r\n\r\n")
            assert [await client.status() for client in greedy] == [200] * 20

    run(check)
