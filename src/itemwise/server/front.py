"""The front door of several engines: the HTTP API of one server, answered by replicas.

It reads a body, finds what its items share, and hands the request to a replica by that key. It
scores nothing. What a replica answers goes to the client as it is, so the bits are the replica's.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from itemwise.config import ServerConfig
from itemwise.dialects.table import by_path, dialect_of
from itemwise.errors import DeadlineExceededError, ItemwiseError, RefusedError
from itemwise.request.json_body import parse_body
from itemwise.routing import query_key
from itemwise.server.app import add_edge, disconnected
from itemwise.server.bodies import Bodies
from itemwise.server.encodings import decoded
from itemwise.server.errors import choose_dialect, json_response
from itemwise.server.front_metrics import FrontMetrics, merged
from itemwise.server.metrics import CONTENT_TYPE
from itemwise.server.record import record_of, route_path
from itemwise.server.replica import Answer, Ask, Headers, ReplicaLostError, Replicas
from itemwise.types import Tokens

MAX_TRIES = 4  # of a request whose replica ends, which may be the request's own doing
FIRST_PAUSE_S = 0.1  # before the second try; doubles, as it takes a moment to learn of an end
INFORMATION_S = 10.0  # time that replicas have for requests that score nothing
HEALTH_S = 5.0
# Errors of a replica that another replica may not have.
RETRIED = frozenset(("not_ready", "unhealthy", "self_check_failed", "shutting_down"))
KEPT_HERE = frozenset((b"authorization", b"x-request-id"))
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def front_app(config: ServerConfig, replicas: Replicas, *, named: bool = True) -> ASGIApp:
    """The API in front of replicas.

    Args:
        config: of the server.
        replicas: answer its requests.
        named: whether answers get an `X-Request-Id`; False where a proxy adds one.

    Raises:
        ConfigError: the file with keys cannot be read.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    metrics = FrontMetrics()
    add_edge(app, config, metrics.on_start, metrics.on_end)
    _add_information(app, replicas, metrics)
    bodies = Bodies(config.max_body_bytes)

    @app.api_route("/{path:path}", methods=METHODS)
    async def forward(request: Request) -> Response:
        record = record_of(request.scope)
        path = route_path(request.scope)
        async with bodies.read(request) as body:
            look = partial(_look, config, request.scope, path)
            grows = "content-encoding" in request.headers
            route = await bodies.work(look, body, grows=grows)
            record.stages["read"] = record.seconds()
            ask = Ask(
                request.method,
                path,
                request.scope["query_string"],
                _inner_headers(request, record.request_id),
                body,
            )
            asked = _ask_until_answered(replicas, ask, route.key, metrics)
            answer = await _answered_or_left(request, asked, route.most_s, record.seconds())
        record.code = answer.code
        record.items, record.tokens, record.cached_tokens = answer.counts
        record.stages.update(answer.stages)
        return _response(answer)

    return app if named else _without_id(app)


def _without_id(app: ASGIApp) -> ASGIApp:
    async def unnamed(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
                message = {**message, "headers": kept}
            await send(message)

        await app(scope, receive, send_without_id)

    return unnamed


class _Route(NamedTuple):
    """How a request is handed on.

    Attributes:
        key: names what its items share, empty if that is nothing.
        most_s: seconds from its arrival after which it is given up.
    """

    key: str
    most_s: float


def _look(config: ServerConfig, scope: Scope, path: str, body: bytearray) -> _Route:
    """How a body is handed on. Whatever is wrong with it, a replica will say."""
    if path not in by_path():
        return _Route("", INFORMATION_S)
    most_s = config.max_timeout_s
    try:
        fields = parse_body(decoded(scope, body, config.max_body_bytes), config.max_request_labels)
        if not isinstance(fields, dict):
            return _Route("", most_s)
        dialect = choose_dialect(scope, dialect_of(path, fields))
        wished_s = fields.get("timeout_s")
        if isinstance(wished_s, (int, float)) and wished_s > 0:
            most_s = min(most_s, wished_s)
        return _Route(shared_key(dialect.read(fields).call), most_s)
    except ItemwiseError:
        return _Route("", most_s)


def _inner_headers(request: Request, request_id: str) -> Headers:
    """The headers for a replica: without the API key, which is checked here."""
    kept = [pair for pair in request.headers.raw if pair[0] not in KEPT_HERE]
    return (*kept, (b"x-request-id", request_id.encode()))


def shared_key(call: Any) -> str:
    """Names what the items of a call share: equal for equal queries.

    Args:
        call: of any dialect, or None.

    Returns:
        hexadecimal digits; empty if the items share nothing, or it is not known what.
    """
    fields = getattr(call, "fields", None)
    if fields is not None:
        query = None if fields.get("item_first") else fields.get("query")
    else:
        query = getattr(call, "query", _as_text(getattr(call, "state", None)))
    if isinstance(query, str) or _are_token_ids(query):
        return query_key(query).hex() if len(query) else ""
    return ""


def _as_text(state: Any) -> Any:
    """A state that is a JSON value as text; empty if it cannot be written."""
    if not isinstance(state, dict | list):
        return state
    try:
        return orjson.dumps(state).decode()
    except TypeError:  # half a character, which the request will be refused for
        return ""


def _are_token_ids(query: Any) -> TypeGuard[Tokens]:
    if isinstance(query, np.ndarray):
        return query.ndim == 1 and query.dtype.kind in "iu"
    # JSON's true is no token, and a number beyond int32 is none that a replica will take.
    return isinstance(query, list) and all(
        type(token) is int and 0 <= token < 1 << 31 for token in query
    )


async def _ask_until_answered(
    replicas: Replicas, ask: Ask, key: str, metrics: FrontMetrics
) -> Answer:
    """The answer of a replica; asks again if one ends, or cannot answer now.

    Scoring changes nothing, so a request may run twice; its answer is the same.
    """
    for tried in range(1, MAX_TRIES + 1):
        try:
            answer = await replicas.ask(ask, key)
        except ReplicaLostError as error:
            if tried == MAX_TRIES:
                raise RefusedError(
                    "unhealthy",
                    f"{tried} replicas ended while they had the request; see their logs before "
                    "you send it again",
                ) from error
            metrics.on_retry("lost")
        else:
            if answer.code not in RETRIED or tried == MAX_TRIES:
                return answer
            metrics.on_retry(answer.code)
            key = ""  # the home of the key is the one that cannot answer
        await asyncio.sleep(FIRST_PAUSE_S * 2 ** (tried - 1))
    raise AssertionError("the last try returns or raises")


async def _answered_or_left(
    request: Request, asking: Any, most_s: float, passed_s: float
) -> Answer:
    """The answer; cancels the request if the client leaves or its time is over first."""
    asked: asyncio.Task[Answer] = asyncio.create_task(asking)
    gone = asyncio.create_task(disconnected(request))
    left_s = max(0.0, most_s - passed_s)
    try:
        await asyncio.wait((asked, gone), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            return asked.result()
        if gone.done():
            raise ClientDisconnect
        raise DeadlineExceededError(
            f"the request was not answered within {most_s:g} s; nothing of it is returned, send "
            "fewer items or allow more time (`timeout_s`)"
        )
    finally:
        asked.cancel()
        gone.cancel()


def _response(answer: Answer) -> Response:
    response = Response(answer.body, answer.status)
    response.raw_headers += answer.headers
    return response


def _add_information(app: FastAPI, replicas: Replicas, metrics: FrontMetrics) -> None:
    """Adds the routes that concern all replicas, or none."""

    @app.get("/live")
    async def live() -> Response:
        return json_response({"status": "ok"})

    @app.get("/health_generate")
    @app.get("/health")
    async def health() -> Response:
        try:
            async with asyncio.timeout(HEALTH_S):
                return _response(await replicas.ask(Ask("GET", "/health"), ""))
        except (TimeoutError, ReplicaLostError):
            raise RefusedError(
                "not_ready", f"no replica answered within {HEALTH_S:g} s; try again later"
            ) from None

    @app.get("/metrics")
    async def show_metrics() -> Response:
        pages = await _ask_all(replicas, Ask("GET", "/metrics"))
        texts = {name: answer.body.decode() for name, answer in pages}
        return Response(merged(metrics.registry, texts), media_type=CONTENT_TYPE)

    @app.get("/get_server_info")
    @app.get("/server_info")
    async def server_info() -> Response:
        """What one replica says of itself, and all of them by name."""
        pages = await _ask_all(replicas, Ask("GET", "/server_info"))
        infos = {name: orjson.loads(answer.body) for name, answer in pages}
        first: dict[str, Any] = next(iter(infos.values()), {})
        return json_response({**first, "front": metrics.counts(), "replicas": infos})

    @app.post("/flush_cache", response_class=PlainTextResponse)
    async def flush_cache() -> Response:
        answers = [answer for _, answer in await _ask_all(replicas, Ask("POST", "/flush_cache"))]
        failed = [answer for answer in answers if answer.status != 200]
        if not answers:
            raise RefusedError("not_ready", "there are no replicas yet; try again later")
        return _response((failed or answers)[0])


async def _ask_all(replicas: Replicas, ask: Ask) -> list[tuple[str, Answer]]:
    try:
        async with asyncio.timeout(INFORMATION_S):
            return sorted(await replicas.ask_all(ask), key=lambda pair: pair[0])
    except TimeoutError:
        raise DeadlineExceededError(
            f"the replicas did not all answer within {INFORMATION_S:g} s; try again later"
        ) from None
