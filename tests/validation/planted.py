"""A scorer whose truth is a formula, with faults to plant, behind the real app; and bad servers."""

from __future__ import annotations

import functools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, TypeVar

import httpx
import numpy as np

from itemwise.config import ServerConfig
from itemwise.request.calls import Call, Prepared, ScoreCall
from itemwise.request.check import RequestLimits
from itemwise.request.tools import PromptTools
from itemwise.types import ScoreRequest, ScoreResult, Tokens
from itemwise.validation.client import ScoreClient
from itemwise.validation.evaluate import Amount, Mode, evaluate
from itemwise.validation.files import Json
from itemwise.validation.measures import Scores
from itemwise.validation.torch_parity import Reference
from itemwise.validation.workloads import DEFAULT, Workload
from tests.engine.fake_core import FakeCore
from tests.server.fakes import running_server, wait_until

T = TypeVar("T")

Fault = Literal["leak", "order", "swapped", "shifted", "coarse"]
REQUEST_S = 0.004  # each request costs as much, so that many items in one are faster
SMALL = Amount(item_counts=(1, 32), rounds=1, warmup=0, sweep="none")


def truth(
    prefix: Sequence[int], item: Tokens, labels: Sequence[int], shift: int = 0
) -> list[float]:
    """Softmax of a formula over tokens and their positions; `shift` moves the item."""
    places = [*range(len(prefix)), *range(len(prefix) + shift, len(prefix) + shift + len(item))]
    tokens = [*prefix, *item]
    logits = [
        sum(
            math.sin(0.1 * (token + label) * (place + 1))
            for token, place in zip(tokens, places, strict=True)
        )
        for label in labels
    ]
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def as_sent(scores: Sequence[Sequence[float]]) -> Scores:
    """Scores as a server sends them: float32, in their shortest decimals."""
    return [[float(str(np.float32(score))) for score in row] for row in scores]


class PlantedScorer:
    """Scores by `truth`, with or without a fault and a delimiter."""

    def __init__(
        self, delimiter: int | None, fault: Fault | None = None, vocab_size: int = 151936
    ) -> None:
        self.fault = fault
        self.delimiter = delimiter
        self.engine = FakeCore(self._score, step_tokens=100_000)
        limits = RequestLimits(vocab_size, max_seq_len=5000, max_items=64, delimiter=delimiter)
        self._tools = PromptTools(limits)

    def prepare(self, fields: Mapping[str, Any], /) -> ScoreRequest:
        return self.prepare_call(ScoreCall(fields)).request

    def prepare_call(
        self, call: Call[T], between_pieces: Callable[[], None] | None = None, /
    ) -> Prepared[T]:
        return call.prepare(self._tools.with_check(between_pieces))

    def info(self) -> dict[str, Any]:
        config = {"multi_item_scoring_delimiter": self.delimiter}
        status = {"status": "passed"}
        device = {"kind": "formula", "platform": "none"}
        return {
            "engine_config": config,
            "dtype": "float32",
            "self_check": status,
            "device": device,
        }

    def _score(self, request: ScoreRequest) -> ScoreResult:
        time.sleep(REQUEST_S)
        prefix = (*request.query, *(() if self.delimiter is None else (self.delimiter,)))
        rows = []
        for place, (item, labels) in enumerate(zip(request.items, request.labels, strict=True)):
            shift = 1 if self.fault == "shifted" else 0
            row = np.array(truth(prefix, item, labels, shift))
            if self.fault == "leak":
                others = [t for i, one in enumerate(request.items) if i != place for t in one]
                row = row + 1e-4 * math.sin(sum(others)) * np.array([1, -1])
            if self.fault == "order":  # moves by a bit with the place alone
                row = row + np.float32(1e-6) * place * np.array([1, -1])
            if self.fault == "swapped":
                row = row[::-1]
            if self.fault == "coarse":
                row = np.round(row, 3)
            rows.append(row.astype(np.float32))
        return ScoreResult(np.stack(rows), len(prefix))


@contextmanager
def planted_server(scorer: PlantedScorer, **config: Any) -> Iterator[str]:
    """The real app around a scorer; gives its URL once it is healthy."""
    with running_server(ServerConfig(model_path="planted", **config), lambda: scorer) as url:
        with httpx.Client(verify=False) as client:
            wait_until(lambda: client.get(f"{url}/health").status_code == 200)
        yield url


def measure(
    mode: Mode,
    fault: Fault | None = None,
    *,
    workload: Workload = DEFAULT,
    amount: Amount = SMALL,
) -> Json:
    """Results of `evaluate` on a server of its own, over HTTP."""
    delimiter = workload.delimiter if mode == "multi" else None
    with planted_server(PlantedScorer(delimiter, fault)) as url, ScoreClient(url) as client:
        return evaluate(client, mode, workload=workload, amount=amount)


@functools.cache
def measured_once(mode: Mode, fault: Fault | None) -> Json:
    """`measure`, once a session for each pair; of three rounds, so that one may be held up."""
    return measure(mode, fault, amount=replace(SMALL, rounds=3))


def reference(workload: Workload = DEFAULT, dtype: Any = "float32") -> Reference:
    """What PyTorch would score if its truth were the formula."""
    prefix = (*workload.query, *(() if workload.delimiter is None else (workload.delimiter,)))
    rows = {
        name: as_sent([truth(start, item, workload.labels, shift) for item in workload.items])
        for name, start, shift in (
            ("serial", workload.query, 0),
            ("multi_semantic", prefix, 0),
            ("shifted", workload.query, 1),
        )
    }
    return Reference(dtype, latencies={32: [1.0, 1.0]}, **rows)


Answer = Callable[[int, Json], tuple[int, Any] | None]


@contextmanager
def scripted_server(answer: Answer) -> Iterator[str]:
    """A server that answers the n-th POST as told; None closes the connection and the server.

    GET is answered with 404.
    """
    count = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            nonlocal count
            count += 1
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found = answer(
                count,
                {
                    "path": self.path,
                    "headers": {k.lower(): v for k, v in self.headers.items()},
                    **body,
                },
            )
            if found is None:
                self.close_connection = True
                threading.Thread(target=server.shutdown).start()
                server.socket.close()
                return
            self._send(*found)

        def _send(self, status: int, content: Any) -> None:
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
