"""The HTTP API.

`POST /v1/score` reads a bounded body, checks and tokenises it on a worker thread, and waits for the
engine's thread; the event loop only passes bytes on, so `/health` answers while scores are made.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import logging
import math
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import orjson
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from itemwise import __version__
from itemwise.config import ServerConfig
from itemwise.errors import ItemwiseError, QueueFullError, RefusedError, RequestError
from itemwise.request import REQUEST_FIELDS
from itemwise.server.schemas import (
    ErrorBody,
    Health,
    ModelList,
    ScoreBody,
    ScoreResponse,
    ServerInfo,
)
from itemwise.server.service import AnyScorer, Service
from itemwise.types import ScoreRequest, ScoreResult

logger = logging.getLogger("itemwise.server")

STATUS_OF_CODE: dict[str, int] = {
    "missing_query": 400,
    "empty_query": 400,
    "invalid_query_type": 400,
    "missing_items": 400,
    "empty_items": 400,
    "invalid_items_type": 400,
    "mixed_input_types": 400,
    "missing_label_token_ids": 400,
    "empty_label_token_ids": 400,
    "invalid_label_token_ids_length": 400,
    "invalid_labels_type": 400,
    "conflicting_labels": 400,
    "duplicate_labels": 400,
    "label_not_one_token": 400,
    "invalid_token_id_type": 400,
    "invalid_apply_softmax_type": 400,
    "invalid_apply_template_type": 400,
    "invalid_item_first_type": 400,
    "invalid_temperature": 400,
    "invalid_chunk_size": 400,
    "too_many_items": 400,
    "sequence_too_long": 400,
    "delimiter_in_input": 400,
    "no_tokenizer": 400,
    "no_template": 400,
    "item_first_with_template": 400,
    "model_not_found": 400,
    "invalid_json": 400,
    "invalid_request": 400,
    "invalid_api_key": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "body_too_large": 413,
    "token_id_negative": 422,
    "token_id_exceeds_vocab": 422,
    "queue_full": 429,
    "client_closed_request": 499,
    "internal_error": 500,
    "not_ready": 503,
    "unhealthy": 503,
    "self_check_failed": 503,
    "shutting_down": 503,
}
_TYPE_OF_STATUS = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "internal_server_error",
    503: "service_unavailable_error",
}
_CODE_OF_HTTP_STATUS = {404: "not_found", 405: "method_not_allowed"}
_REQUEST_ID = re.compile(rb"[\w.:/+=@-]{1,128}")
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in sorted(set(STATUS_OF_CODE.values()) - {404, 405})
}
_SCORE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": ScoreBody.model_json_schema()}},
    }
}


def create_app(config: ServerConfig, load: Callable[[], AnyScorer]) -> FastAPI:
    """The API of a scorer that `load` makes in the background once the server starts."""
    return app_of(Service(config, load))


def app_of(service: Service) -> FastAPI:
    """The API of a service, which starts and drains with the app's lifespan."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await run_in_threadpool(service.drain)

    app = FastAPI(
        title="Itemwise",
        summary="Scores many items against one shared query.",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.add_middleware(_Edge, api_key=service.config.api_key)
    for kind, handler in (
        (ItemwiseError, _on_itemwise_error),
        (HTTPException, _on_http_exception),
        (RequestValidationError, _on_validation_error),
        (ClientDisconnect, _on_disconnect),
    ):
        app.add_exception_handler(kind, handler)
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    config, started = service.config, int(time.time())
    # Shows the key in the API's documentation; `_Edge` is what checks it.
    keyed = [Depends(HTTPBearer(auto_error=False))] if config.api_key else []

    @app.post(
        "/v1/score",
        response_model=ScoreResponse,
        responses=_ERRORS,
        openapi_extra=_SCORE_BODY,
        dependencies=keyed,
    )
    async def score(request: Request) -> Response:
        """Scores every item: the next-token probabilities of the labels after `query + item`."""
        service.check_ready()
        body = await _read_body(request, config.max_body_bytes)
        prepared = await run_in_threadpool(_prepare, service, body)
        del body
        result = await _await_or_cancel(request, service.submit(prepared))
        return _json(_score_response(result, config.model_name))

    @app.get("/health", response_model=Health, responses={503: {"model": ErrorBody}})
    async def health() -> Response:
        """200 once the model is loaded, compiled and self-checked; else 503."""
        service.check_ready()
        return _json({"status": "ok"})

    @app.get("/v1/models", response_model=ModelList, dependencies=keyed)
    async def models() -> Response:
        """The one model that is served."""
        card = {
            "id": config.model_name,
            "object": "model",
            "created": started,
            "owned_by": "itemwise",
        }
        return _json({"object": "list", "data": [card]})

    @app.get("/server_info", response_model=ServerInfo, dependencies=keyed)
    async def server_info() -> Response:
        """What runs, with which settings, and what it has done so far."""
        return _json(await run_in_threadpool(_server_info, service))


async def _read_body(request: Request, max_bytes: int) -> bytearray:
    """The body; of one that is too long, no more than the limit is ever held."""
    too_large = RefusedError(
        "body_too_large", f"the body is longer than {max_bytes} bytes; send fewer items at a time"
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > max_bytes):
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > max_bytes:
            raise too_large
        body += chunk
    return body


def _prepare(service: Service, body: bytearray) -> ScoreRequest:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError("invalid_json", f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise RequestError("invalid_json", "the body is JSON but not an object, expected {...}")
    service.check_model(fields.get("model"))
    return service.prepare({name: fields[name] for name in REQUEST_FIELDS if name in fields})


async def _await_or_cancel(request: Request, future: Future[ScoreResult]) -> ScoreResult:
    """The result; if the client leaves first, its place in the queue is given up."""
    scored = asyncio.wrap_future(future)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((scored, gone), return_when=asyncio.FIRST_COMPLETED)
        if scored.done():
            return scored.result()
        raise ClientDisconnect
    finally:
        scored.cancel()  # also cancels `future`, unless the engine has it already
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _score_response(result: ScoreResult, model: str) -> dict[str, Any]:
    scores = result.scores
    rows = scores if isinstance(scores, list) else [scores]
    if not all(np.isfinite(row).all() for row in rows):
        raise ArithmeticError("scores hold NaN or infinity")
    return {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "scoring",
        "created": int(time.time()),
        "model": model,
        "scores": scores if isinstance(scores, list) else np.ascontiguousarray(scores),
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "total_tokens": result.prompt_tokens,
            "completion_tokens": 0,
        },
    }


def _server_info(service: Service) -> dict[str, Any]:
    settings = dataclasses.asdict(service.config)
    del settings["api_key"]
    scheduler, scorer = service.scheduler, service.scorer
    return {
        "version": __version__,
        "state": service.state,
        "server": settings,
        "scheduler": dataclasses.asdict(scheduler.counters()) if scheduler else None,
        "engine": scorer.info() if scorer else None,
    }


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, media_type="application/json")


def error_response(
    code: str,
    message: str,
    param: str | None = None,
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error in both usual shapes; the status is that of `code` unless given."""
    status = STATUS_OF_CODE[code] if status is None else status
    facts = {
        "message": message,
        "type": _TYPE_OF_STATUS.get(status, "invalid_request_error"),
        "param": param,
    }
    content = {"object": "error", **facts, "code": status, "error": {**facts, "code": code}}
    return _json(content, status, headers)


async def _on_itemwise_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ItemwiseError)
    if STATUS_OF_CODE.get(error.code, 500) == 500:
        raise error  # `_Edge` logs it and answers
    headers = {}
    if isinstance(error, QueueFullError):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    param = error.param if isinstance(error, RequestError) else None
    return error_response(error.code, str(error), param, headers=headers)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODE_OF_HTTP_STATUS.get(error.status_code, "invalid_request")
    message = f"{request.method} `{request.url.path}`: {error.detail}; `/docs` lists what there is"
    return error_response(code, message, status=error.status_code, headers=error.headers)


async def _on_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [f"`{'.'.join(map(str, e['loc']))}`: {e['msg']}" for e in error.errors()]
    return error_response("invalid_request", "; ".join(faults))


async def _on_disconnect(_: Request, __: Exception) -> Response:
    # Nobody reads this; the status is for logs and proxies.
    return error_response("client_closed_request", "the client closed the connection")


class _Edge:
    """What every request passes: its id, the API key, and an answer where all else failed."""

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self._app = app
        self._api_key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                named = (b"x-request-id", request_id.encode())
                message = {**message, "headers": [*message["headers"], named]}
            await send(message)

        if not self._may_pass(scope):
            refusal = error_response(
                "invalid_api_key",
                "the API key is missing or wrong, expected the header `Authorization: Bearer KEY`",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await refusal(scope, receive, send_with_id)
            return
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if started:
                raise
            failure = error_response(
                "internal_error",
                f"the server failed on this request; its log says why under id {request_id}",
            )
            await failure(scope, receive, send_with_id)

    def _may_pass(self, scope: Scope) -> bool:
        path = scope["path"]
        if self._api_key is None or not (path.startswith("/v1/") or path == "/server_info"):
            return True
        scheme, _, key = _header(scope, b"authorization").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._api_key)


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")


def _request_id(scope: Scope) -> str:
    """The client's id if it is short and plain, else a new one."""
    given = _header(scope, b"x-request-id")
    return given.decode("ascii") if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
