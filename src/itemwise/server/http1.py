"""HTTP/1.1 on one connection: h11 reads and writes, an ASGI application answers.

uvicorn makes a connection for each socket (its option `http`). Its own protocols limit only how
long a connection stays idle after an answer. Here every state has a limit (`ConnectionLimits`),
what comes is parsed in turns with other connections, and probes get in when all are taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http
import logging
import re
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.server import ServerState

from itemwise.server.connections import PROBES, ConnectionLimits, Pool
from itemwise.server.errors import error_response

MAX_HEAD_BYTES = 64 * 1024
EMPTY_LINES = b"\r\n"  # that old clients send after a body count for nothing (RFC 9112, 2.2)
EVENTS_PER_TURN = 8  # parsed at most before another connection's turn, some 0.25 ms
BODY_BUFFER_BYTES = 64 * 1024  # of a body that waits for its reader; no more is read then
# A body may come in this many small pieces; further ones must have this many bytes on average.
FREE_PIECES = 1024
MIN_PIECE_BYTES = 64
logger = logging.getLogger("itemwise.server")


def protocol(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """What uvicorn's option `http` takes, for one server: it makes a `Connection` of each socket.

    The type is what uvicorn declares; it only calls it, with its config and state.
    """
    return functools.partial(Connection, Pool(limits))  # type: ignore[return-value]


class Connection(asyncio.BufferedProtocol):
    """A connection; its answers come from `config.loaded_app`.

    Args:
        pool: the connections of this server.
        config: uvicorn's, loaded.
        server_state: uvicorn's, with its connections and tasks.
        app_state: state of the lifespan, for each request.
    """

    def __init__(
        self,
        pool: Pool,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._pool, self._limits = pool, pool.limits
        self._app: ASGIApp = config.loaded_app
        self._root_path = config.root_path
        self._server = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._h11 = h11.Connection(h11.SERVER, MAX_HEAD_BYTES)
        self._transport: asyncio.Transport
        self._within = True  # the maximum of connections
        self._keep = True  # open after the next answer
        self._lingering = False  # it is answered and closed on our side, and still sends
        self._head_begun = False
        self._in_turn = False
        self._exchange: Exchange | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The event loop has opened the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)  # so that a write ends when the network has it
        self._server.connections.add(self)  # type: ignore[arg-type]  # uvicorn names its own
        self._within = self._pool.enter(self)
        self._allow(self._limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by whomever."""
        self._pool.leave(self)
        self._server.connections.discard(self)
        self._allow(None)
        self._writable.set()
        if self._exchange is not None:
            self._exchange.lose()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the event loop puts what it reads."""
        return self._pool.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """The event loop has read something; if that takes long to parse, it reads no more."""
        if self._lingering or self._h11.their_state is h11.MUST_CLOSE:
            return  # nobody reads it
        data = bytes(self._pool.buffer[:nbytes])
        if self._exchange is None and not self._head_begun:
            data = data.lstrip(EMPTY_LINES)
            if not data:
                return
            self._head_begun = True
            self._allow(self._limits.head_s)
        self._h11.receive_data(data)
        # Where nobody waits for a turn, a short request is parsed here and now.
        if self._pool.has_turns or self._in_turn or self.advance():
            self._transport.pause_reading()
            self.take_turn()

    def pause_writing(self) -> None:
        """The network takes no more for now."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The network has taken all that was written."""
        self._writable.set()

    def shutdown(self) -> None:
        """Closes the connection once it has no request. uvicorn calls it."""
        self._keep = False
        if self._exchange is None:
            self._transport.close()

    def abort(self) -> None:
        """Closes the connection at once."""
        self._transport.abort()

    def advance(self) -> bool:
        """Parses some of what has come; whether there may be more."""
        for _ in range(EVENTS_PER_TURN):
            if self._transport.is_closing() or self._lingering or not self._take_event():
                self._in_turn = False
                return False
        return True

    def take_turn(self) -> None:
        """Parses what has come, in turn with the other connections."""
        if not self._in_turn:
            self._in_turn = True
            self._pool.take_turn(self)

    def _take_event(self) -> bool:
        exchange = self._exchange
        if exchange is not None and len(exchange.body) > BODY_BUFFER_BYTES:
            self._transport.pause_reading()  # its reader takes a turn
            return False
        try:
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            self._refuse(_in_words(error))
            return False
        match event:
            case h11.Request():
                return self._begin(event)
            case h11.Data() if exchange is not None:
                if not exchange.feed(bytes(event.data)):
                    self._refuse("the body comes in too many small pieces")
                    return False
                return True
            case h11.EndOfMessage() if exchange is not None:
                self._allow(None)
                exchange.feed_end()
                return True
        # More data is needed, or (PAUSED) a next request must wait for this one's answer.
        if event is h11.NEED_DATA or not self._h11.trailing_data[0]:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()
        return False

    def _begin(self, head: h11.Request) -> bool:
        """Hands a request to the application."""
        if not head.http_version.startswith(b"1."):
            self._refuse("expected HTTP/1.1 or 1.0")
            return False
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in head.headers}:
            # A proxy that goes by the other one would see a request in the body (RFC 9112, 6.1).
            self._refuse("it has both `Content-Length` and `Transfer-Encoding`")
            return False
        self._pool.begin(self)
        self._allow(self._limits.body_s)
        scope = self._scope(head)
        app = self._app
        if not self._within:
            if not self._pool.is_full:
                self._within = True
            else:
                self._keep = False
                app = app if scope["path"] in PROBES else self._refuse_crowd
        self._exchange = Exchange(self, scope)
        task = self._loop.create_task(self._exchange.run(app))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)
        return True

    def _scope(self, head: h11.Request) -> Scope:
        target = head.target
        if target.lower().startswith((b"http://", b"https://")):  # the form that proxies are sent
            _, _, path = target.partition(b"://")[2].partition(b"/")
            target = b"/" + path
        raw_path, _, query = target.partition(b"?")
        root = self._root_path
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.http_version.decode("ascii"),
            "server": _address(self._transport, "sockname"),
            "client": _address(self._transport, "peername"),
            "scheme": "https" if self._transport.get_extra_info("sslcontext") else "http",
            "method": head.method.decode("ascii"),
            "root_path": root,
            "path": root + unquote(raw_path.decode("ascii")),
            "raw_path": root.encode("ascii") + raw_path,
            "query_string": query,
            "headers": [(bytes(name), bytes(value)) for name, value in head.headers],
            "state": self._app_state.copy(),
        }

    async def _refuse_crowd(self, scope: Scope, receive: Receive, send: Send) -> None:
        most = self._limits.max_connections
        response = error_response(
            "too_many_connections",
            f"{most} connections are open, the maximum (`max_connections`); try again later, or "
            "open fewer connections",
            headers={"Retry-After": "1", "X-Request-Id": uuid.uuid4().hex},
        )
        await response(scope, receive, send)

    def _refuse(self, why: str) -> None:
        """Answers what is no HTTP request, if it still can, and closes."""
        if self._exchange is not None:
            self._exchange.lose()
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._transport.close()
            return
        response = error_response(
            "invalid_request",
            f"the connection does not carry a valid HTTP request: {why[:200]}",
            headers={"Connection": "close", "X-Request-Id": uuid.uuid4().hex},
        )
        head = h11.Response(status_code=response.status_code, headers=response.raw_headers)
        self._transport.write(self._h11.send(head) or b"")
        self._transport.write(self._h11.send(h11.Data(bytes(response.body))) or b"")
        self._close()

    def waits_for_continue(self) -> bool:
        """Whether the client sends its body only if it is asked to."""
        return self._h11.they_are_waiting_for_100_continue

    async def send(self, *events: h11.Event) -> None:
        """Returns when the network has taken the events; aborts if that takes too long."""
        self._transport.write(b"".join(self._h11.send(event) or b"" for event in events))
        if self._writable.is_set():
            return
        try:
            async with asyncio.timeout(self._limits.answer_s):
                await self._writable.wait()
        except TimeoutError:
            self._transport.abort()

    def response_head(self, message: Message, body_has_come: bool) -> h11.Response:
        """The head of an answer. The connection closes after it if the body has not all come."""
        status = message["status"]
        headers = [*self._server.default_headers, *message.get("headers", ())]
        if not (self._keep and body_has_come):
            headers = [pair for pair in headers if pair[0].lower() != b"connection"]
            headers.append((b"connection", b"close"))
        return h11.Response(status_code=status, headers=headers, reason=_PHRASES.get(status, b""))

    def end(self) -> None:
        """Goes on after an answer: waits for the next request, or closes."""
        self._server.total_requests += 1
        self._exchange = None
        if self._transport.is_closing():
            return
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE and self._keep:
            self._start_next_cycle()
            self._pool.wait(self)
            self._head_begun = bool(self._h11.trailing_data[0])
            self._allow(self._limits.head_s if self._head_begun else self._limits.keep_alive_s)
            self.take_turn()
        else:
            self._close()

    def _start_next_cycle(self) -> None:
        """Makes ready for the next request, of which something may be here already."""
        trailing = self._h11.trailing_data[0]
        if trailing[:1] not in (b"\r", b"\n"):
            self._h11.start_next_cycle()
            return
        self._h11 = h11.Connection(h11.SERVER, MAX_HEAD_BYTES)
        if trailing := trailing.lstrip(EMPTY_LINES):
            self._h11.receive_data(trailing)

    def _close(self) -> None:
        """Closes, but takes what a client still sends: closed at once, it would lose the answer."""
        if self._h11.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            self._transport.close()
            return
        self._lingering = True
        self._pool.wait(self)
        self._allow(self._limits.linger_s)
        with contextlib.suppress(OSError):  # the client has left meanwhile
            self._transport.write_eof()
        self._transport.resume_reading()

    def _allow(self, seconds: float | None) -> None:
        """Aborts the connection in so many seconds, in place of what was set before."""
        if self._clock is not None:
            self._clock.cancel()
        self._clock = None if seconds is None else self._loop.call_later(seconds, self.abort)


class Exchange:
    """One request and its answer, as an ASGI application sees them.

    Attributes:
        body: bytes of the body that the application has not taken.
    """

    def __init__(self, connection: Connection, scope: Scope) -> None:
        self.body = bytearray()
        self._connection = connection
        self._scope = scope
        self._num_pieces = self._num_bytes = 0
        self._body_has_come = self._body_is_told = False
        self._head: h11.Response | None = None
        self._started = self._complete = self._lost = False
        self._changed = asyncio.Event()

    def feed(self, data: bytes) -> bool:
        """Takes a piece of the body; False if there were too many small ones."""
        self.body += data
        self._num_pieces += 1
        self._num_bytes += len(data)
        self._changed.set()
        return self._num_bytes >= MIN_PIECE_BYTES * (self._num_pieces - FREE_PIECES)

    def feed_end(self) -> None:
        """Takes the end of the body."""
        self._body_has_come = True
        self._changed.set()

    def lose(self) -> None:
        """Notes that the client is gone."""
        self._lost = True
        self._changed.set()

    async def run(self, app: ASGIApp) -> None:
        """Has the application answer; closes the connection if it does not."""
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:
            logger.exception("The application failed outside of its own error handling.")
        finally:
            if not (self._complete or self._lost):
                self._connection.abort()

    async def receive(self) -> Message:
        """ASGI: the next part of the body, or that the client is gone or answered."""
        if self._connection.waits_for_continue() and not (self._lost or self._started):
            await self._connection.send(h11.InformationalResponse(status_code=100, headers=[]))
        while not (self._lost or self._complete):
            if self.body or (self._body_has_come and not self._body_is_told):
                body, self.body = bytes(self.body), bytearray()
                self._body_is_told = self._body_has_come
                self._connection.take_turn()
                return {"type": "http.request", "body": body, "more_body": not self._body_has_come}
            self._changed.clear()
            await self._changed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI: a part of the answer. The head goes out with the first part of the body."""
        if self._lost:
            return
        if message["type"] == "http.response.start":
            assert not self._started, "the answer has already begun"
            self._started = True
            self._head = self._connection.response_head(message, self._body_has_come)
            return
        assert self._started, "a body before its answer"
        assert not self._complete, "a body after its answer"
        events: list[h11.Event] = []
        if self._head is not None:
            events.append(self._head)
            self._head = None
        if self._scope["method"] != "HEAD":
            events.append(h11.Data(message.get("body", b"")))
        more = message.get("more_body", False)
        if not more:
            events.append(h11.EndOfMessage())
        await self._connection.send(*events)
        if not more and not self._lost:
            self._complete = True
            self._changed.set()
            self._connection.end()


def _in_words(error: h11.RemoteProtocolError) -> str:
    """What h11 says, without the names of Python's types; it quotes what came as a `bytearray`."""
    if error.error_status_hint == http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
        return f"its head, or a line of its body's frame, is longer than {MAX_HEAD_BYTES} bytes"
    return re.sub(r"bytearray\(b(['\"])(.*?)\1\)", r"`\2`", str(error))


_PHRASES = {status.value: status.phrase.encode() for status in http.HTTPStatus}


def _address(transport: asyncio.Transport, name: str) -> tuple[str, int] | None:
    found: Callable[..., Any] | tuple[Any, ...] | None = transport.get_extra_info(name)
    if isinstance(found, tuple) and len(found) >= 2:
        return str(found[0]), int(found[1])
    return None
