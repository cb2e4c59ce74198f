"""A dialect without a server: a body to an answer, with scores by a formula."""

from __future__ import annotations

from typing import Any

import orjson

from itemwise.dialects.base import NOTHING, Fault
from itemwise.dialects.table import dialect_of
from itemwise.errors import RequestError
from tests.server.fakes import FakeScorer

MODEL = "mine"


def ask(path: str, body: dict[str, Any]) -> Any:
    """The answer to a body that is posted to a path."""
    exchange = dialect_of(path, body).read(body)
    if exchange.call is None:
        return exchange.answer(NOTHING, MODEL)
    scorer = FakeScorer()
    prepared = scorer.prepare_call(exchange.call)
    work = scorer.engine.open(prepared.request)
    assert work is not None
    (done,) = scorer.engine.step([work]).finished
    answer = exchange.answer(prepared.finish(done.result()), MODEL)
    return orjson.loads(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))


def refused(path: str, body: dict[str, Any]) -> RequestError:
    """The error that a body meets."""
    try:
        ask(path, body)
    except RequestError as error:
        return error
    raise AssertionError("the body was taken")


FAULT = Fault(400, "empty_items", "invalid_request_error", "no items", "documents")
