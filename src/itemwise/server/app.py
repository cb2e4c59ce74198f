"""The HTTP API.

Every wire format takes the same way: a bounded body is read, checked and tokenised on a worker
thread, and waits for the engine's thread; the event loop only moves bytes, so `/health` answers
during scoring. `dialects/` says which formats there are.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from itemwise import __version__
from itemwise.config import ServerConfig, origins
from itemwise.dialects.base import NOTHING, Dialect, Exchange
from itemwise.dialects.table import by_path, dialect_of
from itemwise.engine.scheduler import Job, Scheduler, Scored
from itemwise.errors import DeadlineExceededError, ItemwiseError, RequestError
from itemwise.request.calls import Prepared
from itemwise.request.json_body import parse_body
from itemwise.server.bodies import Bodies
from itemwise.server.edge import OPEN_PATHS, Edge
from itemwise.server.encodings import decoded
from itemwise.server.errors import (
    STATUS_OF_CODE,
    choose_dialect,
    json_response,
    on_disconnect,
    on_http_exception,
    on_itemwise_error,
    on_validation_error,
)
from itemwise.server.information import add_information, keyed
from itemwise.server.keys import read_keys
from itemwise.server.logs import log_access
from itemwise.server.metrics import Metrics
from itemwise.server.playground import add_playground, playground_files
from itemwise.server.record import Record, record_of
from itemwise.server.reports import add_reports
from itemwise.server.service import AnyScorer, Service
from itemwise.server.tracing import make_tracer
from itemwise.types import ScoreRequest

INLINE_SCORES = 2000  # answers with more scores are encoded on a worker thread


def create_app(config: ServerConfig, load: Callable[[], AnyScorer]) -> FastAPI:
    """The API of a scorer that `load` creates in the background once the server starts."""
    return app_of(Service(config, load))


def app_of(service: Service) -> FastAPI:
    """The API of a service, which starts and drains with the app's lifespan.

    Raises:
        ConfigError: traces are configured but OpenTelemetry is not installed, or the file with
            keys cannot be read.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # On a worker thread, so that the thread pool is set up now, not by the first request.
        await run_in_threadpool(service.start)
        yield
        await run_in_threadpool(service.drain)

    app = FastAPI(
        title="Itemwise",
        summary="Scores many items against one shared query.",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's pages load their scripts from another host
        redoc_url=None,
    )
    metrics = Metrics(service)
    service.on_step = metrics.on_step
    endpoint = service.config.otlp_traces_endpoint
    trace = make_tracer(endpoint) if endpoint else None

    def on_end(record: Record, scope: Scope) -> None:
        metrics.on_end(record)
        if not service.config.disable_access_log:
            log_access(record)
        if trace is not None:
            trace(record, scope)

    files = {} if service.config.disable_playground else playground_files()
    add_edge(app, service.config, metrics.on_start, on_end, files.keys())
    bodies = Bodies(service.config.max_body_bytes)
    for path, choices in by_path().items():
        _add_dialects(app, service, bodies, path, choices)
    add_information(app, service, metrics)
    add_playground(app, files)
    add_reports(app, service.config.reports_dir)
    return app


def add_edge(
    app: FastAPI,
    config: ServerConfig,
    on_start: Callable[[Record], None],
    on_end: Callable[[Record, Scope], None],
    open_paths: Iterable[str] = (),
) -> None:
    """Adds what surrounds all routes: API keys, request ids, CORS, and errors in our own shapes.

    Args:
        app: where to add it.
        config: the server's settings.
        on_start: called with each request's record as it begins.
        on_end: called with the record and the scope of each request that is over.
        open_paths: that need no API key, beside those that never do.

    Raises:
        ConfigError: the file with keys cannot be read.
    """
    app.add_middleware(
        Edge,
        api_keys=read_keys(config),
        root_path=config.root_path,
        on_start=on_start,
        on_end=on_end,
        open_paths=OPEN_PATHS.union(open_paths),
    )
    if config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins(config.allowed_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[
                *("X-Request-Id", "Server-Timing", "Retry-After"),
                *("X-Prompt-Tokens", "X-Shared-Tokens", "X-Cached-Tokens"),
            ],
        )
    for kind, handler in (
        (ItemwiseError, on_itemwise_error),
        (HTTPException, on_http_exception),
        (RequestValidationError, on_validation_error),
        (ClientDisconnect, on_disconnect),
    ):
        app.add_exception_handler(kind, handler)


def _add_dialects(
    app: FastAPI, service: Service, bodies: Bodies, path: str, choices: tuple[Dialect, ...]
) -> None:
    config = service.config

    @app.post(
        path,
        summary=path,
        description="\n\n".join(each.summary for each in choices),
        dependencies=keyed(service),
        **_schemas(choices),
    )
    async def answer(request: Request) -> Response:
        service.check_ready()
        record = record_of(request.scope)
        async with bodies.read(request) as body:
            record.stages["read"] = record.seconds()
            asked = await _prepared_or_left(request, service, bodies, path, body)
        del body
        record.stages["tokenize"] = record.seconds() - record.stages["read"]
        if asked.prepared is None:
            return json_response(asked.exchange.answer(NOTHING, config.model_name))
        job, scheduler = service.submit(asked.prepared.request, asked.cost)
        scored = await _scored_or_cancelled(request, scheduler, job)
        record.items, record.shared_tokens = len(job.request.items), len(job.request.query)
        if _has_few_scores(job.request):
            return _answer(asked, scored, config.model_name, record)
        return await run_in_threadpool(_answer, asked, scored, config.model_name, record)


def _schemas(choices: tuple[Dialect, ...]) -> dict[str, Any]:
    """What the API's schema says about the bodies and answers of a path."""
    bodies = [_in_place(each.body.model_json_schema()) for each in choices]
    schema = bodies[0] if len(bodies) == 1 else {"anyOf": bodies}
    answers, errors = choices[-1].answers, choices[-1].errors
    for each in choices[:-1]:
        answers, errors = answers | each.answers, errors | each.errors  # type: ignore[assignment]
    statuses = sorted(set(STATUS_OF_CODE.values()) - {404, 405})
    return {
        "response_model": answers,
        "responses": {status: {"model": errors} for status in statuses},
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
        },
    }


def _in_place(schema: dict[str, Any]) -> Any:
    """A schema with its definitions where they are used, of which none holds itself.

    Within an API's schema, a route has no place of its own for them.
    """
    definitions = schema.pop("$defs", {})

    def put(part: Any) -> Any:
        if isinstance(part, list):
            return [put(each) for each in part]
        if not isinstance(part, dict):
            return part
        if isinstance(part.get("$ref"), str):
            return put(definitions[part["$ref"].removeprefix("#/$defs/")])
        # A discriminator names definitions; the constants of its property tell them apart, too.
        return {name: put(each) for name, each in part.items() if name != "discriminator"}

    return put(schema)


class _Asked(NamedTuple):
    """What a body asks for, ready to be scored, and how many tokens that costs."""

    exchange: Exchange[Any]
    prepared: Prepared[Any] | None
    cost: int


async def _prepared_or_left(
    request: Request, service: Service, bodies: Bodies, path: str, body: bytearray
) -> _Asked:
    """What the body asks for; gives up between pieces of text if the client leaves."""
    left = threading.Event()
    gone = asyncio.create_task(disconnected(request))
    gone.add_done_callback(lambda _: left.set())
    try:
        prepare = partial(_prepare, service, path, request.scope, left)
        compressed = "content-encoding" in request.headers
        return await bodies.work(prepare, body, grows=compressed)
    finally:
        gone.cancel()


def _prepare(
    service: Service, path: str, scope: Scope, left: threading.Event, body: bytearray
) -> _Asked:
    body = decoded(scope, body, service.config.max_body_bytes)
    fields = parse_body(body, service.config.max_request_labels)
    if not isinstance(fields, dict):
        raise RequestError("invalid_json", "the body is JSON but not an object, expected {...}")
    exchange = choose_dialect(scope, dialect_of(path, fields)).read(fields)
    service.check_model(exchange.model)
    if exchange.call is None:
        return _Asked(exchange, None, 0)
    started, most_s = time.perf_counter(), service.config.max_timeout_s
    wished_s = fields.get("timeout_s")
    if isinstance(wished_s, (int, float)) and wished_s > 0:
        most_s = min(most_s, wished_s)

    def check_wanted() -> None:
        if left.is_set():
            raise ClientDisconnect
        if time.perf_counter() - started > most_s:
            raise DeadlineExceededError(
                f"the text of the request was not tokenised within {most_s:g} s; allow more time, "
                "or send fewer items"
            )

    prepared, cost = service.prepare(exchange.call, check_wanted)
    return _Asked(exchange, prepared, cost)


def _has_few_scores(request: ScoreRequest) -> bool:
    """Whether the answer is short enough to encode on the event loop, in under 1 ms."""
    # Each item has at least one label, so the labels of many items need not be counted.
    few_items = len(request.items) <= INLINE_SCORES
    return few_items and sum(map(len, request.labels)) <= INLINE_SCORES


async def _scored_or_cancelled(request: Request, scheduler: Scheduler, job: Job) -> Scored:
    """The result; cancels the request if the client leaves or the deadline passes first."""
    scored = asyncio.wrap_future(job.future)
    gone = asyncio.create_task(disconnected(request))
    left_s = None if job.deadline is None else max(0.0, job.deadline - time.perf_counter())
    try:
        await asyncio.wait((scored, gone), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not scored.done():
            raise ClientDisconnect
        if not scored.done():
            scheduler.expire(job)
        return await scored
    finally:
        scored.cancel()  # also cancels `job.future`
        gone.cancel()


async def disconnected(request: Request) -> None:
    """Returns once the client has left; for requests whose body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer(asked: _Asked, scored: Scored, model: str, record: Record) -> Response:
    assert asked.prepared is not None
    result = scored.result()
    record.tokens, record.cached_tokens = result.prompt_tokens, result.cached_tokens
    record.stages["queue"] = scored.queue_s
    record.stages["prefill"] = result.timings.prefill
    record.stages["extend"] = result.timings.extend
    started = time.perf_counter()
    response = json_response(asked.exchange.answer(asked.prepared.finish(result), model))
    record.stages["encode"] = time.perf_counter() - started
    return response
