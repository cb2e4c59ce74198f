"""The outermost layer: request id, API key, log line, metrics, and an answer to any failure."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from itemwise.server.errors import error_response
from itemwise.server.keys import is_known
from itemwise.server.record import Record, attach, route_path

logger = logging.getLogger("itemwise.server")
# Paths that need no API key; all others do, those that do not exist among them.
OPEN_PATHS = frozenset(
    ("/health", "/health_generate", "/live", "/metrics", "/docs", "/openapi.json")
)
_REQUEST_ID = re.compile(rb"[\w.:/+=@-]{1,128}")


class Edge:
    """The outermost layer of the API; answers with 500 if an inner layer fails.

    Args:
        app: the inner layers.
        api_keys: any of these lets a request in, except to `open_paths`; none if all are open.
        root_path: path under which a proxy serves the API, or empty. It may take that off.
        on_start: called with each request as it arrives.
        on_end: called with each request that was answered or cancelled.
        open_paths: paths that need no key.
    """

    def __init__(
        self,
        app: ASGIApp,
        api_keys: tuple[bytes, ...],
        root_path: str,
        on_start: Callable[[Record], None],
        on_end: Callable[[Record, Scope], None],
        open_paths: frozenset[str] = OPEN_PATHS,
    ) -> None:
        self._app = app
        self._api_keys = api_keys
        self._root_path = root_path
        self._on_start = on_start
        self._on_end = on_end
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._root_path:
            path = self._root_path + route_path({**scope, "root_path": self._root_path})
            scope = {**scope, "root_path": self._root_path, "path": path}
        record = Record(_request_id(scope), scope["method"], route_path(scope))
        attach(scope, record)
        self._on_start(record)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                named = (b"x-request-id", record.request_id.encode())
                timed = (b"server-timing", record.server_timing().encode())
                counted = [
                    (name.encode(), str(count).encode())
                    for name, count in record.token_counts().items()
                ]
                message = {**message, "headers": [*message["headers"], named, timed, *counted]}
            await send(message)

        try:
            await self._answer(scope, receive, send_with_id, record)
        except BaseException:
            record.code = "internal_error" if record.code == "ok" else record.code
            raise
        finally:
            self._on_end(record, scope)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        if scope["method"] == "HEAD":  # answered as GET; the server leaves the body out
            scope = {**scope, "method": "GET"}
        if not self._may_pass(scope):
            record.code = "invalid_api_key"
            refusal = error_response(
                "invalid_api_key",
                "the API key is missing or wrong, expected the header `Authorization: Bearer KEY`",
                scope=scope,
                headers={"WWW-Authenticate": "Bearer"},
            )
            await refusal(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception:
            record.code = "internal_error"
            logger.exception(
                "request %s failed", record.request_id, extra={"request_id": record.request_id}
            )
            if record.status:
                raise
            failure = error_response(
                "internal_error",
                f"the server failed on this request; search its log for id {record.request_id}",
                scope=scope,
            )
            await failure(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        if not self._api_keys or route_path(scope) in self._open_paths:
            return True
        scheme, _, key = _header(scope, b"authorization").partition(b" ")
        return scheme.lower() == b"bearer" and is_known(key.strip(), self._api_keys)


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")


def _request_id(scope: Scope) -> str:
    """The client's id if it is short and plain, else a new one."""
    given = _header(scope, b"x-request-id")
    return given.decode("ascii") if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
