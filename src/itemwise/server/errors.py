"""Errors as clients see them: the table from codes to statuses, and the body."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from itemwise.dialects.base import Dialect, Fault, common_error
from itemwise.dialects.table import fallback
from itemwise.errors import ItemwiseError, QueueFullError, RequestError
from itemwise.server.record import record_of, route_path

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
    "invalid_tokenize": 400,
    "invalid_special_tokens": 400,
    "invalid_temperature": 400,
    "invalid_chunk_size": 400,
    "invalid_priority": 400,
    "invalid_timeout_s": 400,
    "too_many_items": 400,
    "too_many_tokens": 400,
    "too_many_labels": 400,
    "too_many_values": 400,
    "sequence_too_long": 400,
    "delimiter_in_input": 400,
    "no_tokenizer": 400,
    "no_template": 400,
    "invalid_truncate": 400,
    "invalid_max_tokens_per_item": 400,
    "unsupported_field": 400,
    "invalid_question": 400,
    "no_profile": 400,
    "no_instruction": 400,
    "item_first_with_template": 400,
    "model_not_found": 400,
    "invalid_json": 400,
    "invalid_request": 400,
    "invalid_api_key": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "body_too_slow": 408,
    "body_too_large": 413,
    "unsupported_encoding": 415,
    "token_id_negative": 422,
    "token_id_exceeds_vocab": 422,
    "score_not_finite": 422,
    "queue_full": 429,
    "client_closed_request": 499,
    "internal_error": 500,
    "not_ready": 503,
    "unhealthy": 503,
    "self_check_failed": 503,
    "shutting_down": 503,
    "too_many_connections": 503,
    "deadline_exceeded": 504,
}
_TYPE_OF_STATUS = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "internal_server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_CODE_OF_HTTP_STATUS = {404: "not_found", 405: "method_not_allowed"}
_DIALECT = "itemwise.dialect"


def choose_dialect(scope: Scope, dialect: Dialect) -> Dialect:
    """The dialect, in whose shape this request's errors are written from now on."""
    scope[_DIALECT] = dialect
    return dialect


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """`content` as JSON; NumPy arrays become lists."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, media_type="application/json")


def error_response(
    code: str,
    message: str,
    param: str | None = None,
    *,
    scope: Scope | None = None,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error in the shape that clients of the request's path read.

    Args:
        code: its stable name; determines the status unless that is given.
        message: what happened, and what to do.
        param: the field at fault.
        scope: of the request; None if there is none.
        status: HTTP status.
        headers: further headers.
    """
    status = STATUS_OF_CODE[code] if status is None else status
    kind = _TYPE_OF_STATUS.get(status, "invalid_request_error")
    fault = Fault(status, code, kind, message, param)
    dialect: Dialect | None = None
    if scope:
        dialect = scope.get(_DIALECT) or fallback(route_path(scope))
    if dialect is None:
        return json_response(common_error(fault), status, headers)
    return json_response(dialect.error(fault), dialect.status(fault), headers)


async def on_itemwise_error(request: Request, error: Exception) -> Response:
    """The error's own status and code; raises errors that are our fault again."""
    assert isinstance(error, ItemwiseError)
    if STATUS_OF_CODE.get(error.code, 500) == 500:
        raise error  # `Edge` logs it and answers
    headers = {}
    if isinstance(error, QueueFullError):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    param = error.param if isinstance(error, RequestError) else None
    record_of(request.scope).code = error.code
    return error_response(error.code, str(error), param, scope=request.scope, headers=headers)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """No such path or method."""
    assert isinstance(error, HTTPException)
    code = _CODE_OF_HTTP_STATUS.get(error.status_code, "invalid_request")
    message = f"{request.method} `{request.url.path}`: {error.detail}; `/docs` lists the API"
    record_of(request.scope).code = code
    return error_response(
        code, message, scope=request.scope, status=error.status_code, headers=error.headers
    )


async def on_validation_error(request: Request, error: Exception) -> Response:
    """A fault that FastAPI itself found."""
    assert isinstance(error, RequestValidationError)
    faults = [f"`{'.'.join(map(str, e['loc']))}`: {e['msg']}" for e in error.errors()]
    record_of(request.scope).code = "invalid_request"
    return error_response("invalid_request", "; ".join(faults), scope=request.scope)


async def on_disconnect(request: Request, _: Exception) -> Response:
    """Nobody reads this; the status is for logs and metrics."""
    record_of(request.scope).code = "client_closed_request"
    return error_response("client_closed_request", "the client closed the connection")
