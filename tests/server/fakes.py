"""A scorer without a model that can be held or fail, a server around it, and a client."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import tokenizers
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from tokenizers import models, pre_tokenizers, processors

from itemwise.config import ServerConfig
from itemwise.request.calls import Call, Prepared, ScoreCall
from itemwise.request.chat import Frame
from itemwise.request.check import RequestLimits
from itemwise.request.decide.profile import DecisionProfile, make_profile
from itemwise.request.decide.wording import Form, Wording
from itemwise.request.profiles import Profile
from itemwise.request.tokenizer import Tokenizer
from itemwise.request.tools import PromptTools
from itemwise.server.app import create_app
from itemwise.server.connections import ConnectionLimits
from itemwise.server.http1 import protocol
from itemwise.server.process import listen
from itemwise.server.service import AnyScorer
from itemwise.types import ScoreRequest, ScoreResult, Tokens
from tests.engine.fake_core import FakeCore, first_token

T = TypeVar("T")
WAIT_S = 20
VOCAB_SIZE = 1000
DELIMITER = 999
# A query that begins with one of these makes something happen.
RAISE, NAN, HOLD, LOSE = 901, 902, 903, 904
SECRET = "planted fault"


def fake_score(query: Tokens, item: Tokens, label: int) -> float:
    """A score that depends on every token: a float32, as its shortest decimal form reads."""
    place = sum((i + 1) * token for i, token in enumerate((*query, DELIMITER, *item)))
    return float(str(np.float32((31 * place + 7 * label) % 997 / 997)))


GOOD: dict[str, Any] = {"query": [1, 2], "items": [[3], [], [4, 5]], "label_token_ids": [7, 8]}
GOOD_SCORES = [[fake_score([1, 2], item, label) for label in (7, 8)] for item in ([3], [], [4, 5])]


def word_tokenizer() -> Tokenizer:
    """A token is a word of the form w12; anything else is token 1. Sequences begin with token 0."""
    vocabulary = {f"w{number}": number for number in range(VOCAB_SIZE)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="w1"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="w0 $A", special_tokens=[("w0", 0)]
    )
    return Tokenizer(backend)


def word_decisions(tokenizer: Tokenizer) -> DecisionProfile:
    """A wording in words of that tokenizer: `w40 yes? w41`, with labels from w100 on."""
    labels = tuple(f"w{number}" for number in range(100, 355))
    wording = Wording(
        "sglang-1",
        "{state} ",
        yes_no=Form("w50 {question}", "w50", "", "{label} {description}", "w60", ("w7", "w8")),
        choice=Form("{question}", "", "{label} {name}", "{label} {description}", "w61", labels),
        score=Form("{question}", "", "", "{label} {description}", "w62", labels[:10]),
    )
    frame = Frame("", " w70", strips=False)
    return make_profile("fake", "planted", wording, frame, tokenizer, spaces=(" ",))


class FakeScorer:
    """Scores by `fake_score`; requests with HOLD run until `let_go`, or until a file is gone."""

    def __init__(self, hold_file: Path | None = None) -> None:
        self.holding = threading.Event()
        self.go = threading.Event()
        self.engine = FakeCore(self._score, step_tokens=10_000)
        self._hold_file = hold_file
        limits = RequestLimits(VOCAB_SIZE, max_seq_len=64, max_items=8, delimiter=DELIMITER)
        profile = Profile("fake", "planted", "{query}", " {item} w9", ("w7", "w8"))
        profile = dataclasses.replace(profile, label_ids=(7, 8))
        tokenizer = word_tokenizer()
        decisions = word_decisions(tokenizer)
        self._tools = PromptTools(limits, tokenizer, profile=profile, decisions=decisions)

    def prepare(self, fields: Mapping[str, Any], /) -> ScoreRequest:
        return self.prepare_call(ScoreCall(fields)).request

    def prepare_call(
        self, call: Call[T], between_pieces: Callable[[], None] | None = None, /
    ) -> Prepared[T]:
        return call.prepare(self._tools.with_check(between_pieces))

    def info(self) -> dict[str, Any]:
        profile = {"name": "fake", "why": "planted"}
        decisions = {"name": "words", "why": "planted"}
        return {
            "self_check": {"status": "passed"},
            "max_seq_len": 64,
            "profile": profile,
            "decision_profile": decisions,
        }

    def _score(self, request: ScoreRequest) -> ScoreResult:
        first = first_token(request)
        if first == RAISE:
            raise RuntimeError(SECRET)
        if first == HOLD:
            self._hold()
        if first == LOSE:
            raise SystemExit(SECRET)  # passes the fake core, which takes exceptions alone
        rows = [
            np.array([fake_score(request.query, item, label) for label in labels], np.float32)
            for item, labels in zip(request.items, request.labels, strict=True)
        ]
        if first == NAN:
            rows[-1][-1] = np.nan
        same = len({len(row) for row in rows}) == 1
        num_tokens = len(request.query) + 1 + sum(map(len, request.items))
        scores = np.stack(rows) if same else rows
        zeros = None if request.apply_softmax else np.zeros(len(rows), np.float32)
        return ScoreResult(scores, num_tokens, logits=scores, logsumexps=zeros)

    def _hold(self) -> None:
        self.holding.set()
        if self._hold_file is None:
            assert self.go.wait(WAIT_S)
        else:
            while self._hold_file.exists():
                time.sleep(0.01)


@contextmanager
def running_server(
    config: ServerConfig, load: Callable[[], AnyScorer], limits: ConnectionLimits | None = None
) -> Iterator[str]:
    """The real app behind real HTTP, on a thread; gives its URL."""
    app = create_app(config, load)
    http = protocol(limits or ConnectionLimits(config.max_connections))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, ws="none", lifespan="on", http=http, loop="asyncio")
    )
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        assert not thread.is_alive()


def wait_until(happened: Callable[[], bool]) -> None:
    """Returns once `happened()`, fails after a while."""
    deadline = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def send(method: str, url: str, timeout: float = WAIT_S, **options: Any) -> httpx.Response:
    """A request on a connection of its own."""
    # Plain HTTP needs no certificates, which take long to read.
    return httpx.request(method, url, timeout=timeout, verify=False, **options)


def get(url: str, headers: Any = None) -> httpx.Response:
    """GET of any path."""
    return send("GET", url, headers=headers)


def post(url: str, fields: dict[str, Any], headers: Any = None) -> httpx.Response:
    """POST of a score request to the server at `url`."""
    return send("POST", f"{url}/v1/score", json=fields, headers=headers)


def counters(url: str) -> dict[str, int]:
    """The scheduler's counters as the server shows them."""
    found: dict[str, int] = get(f"{url}/server_info").json()["scheduler"]
    return found


def samples(url: str) -> dict[str, float]:
    """Every sample of `/metrics` by its name and labels."""
    found = {}
    for family in text_string_to_metric_families(get(f"{url}/metrics").text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def assert_error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Checks both shapes of an error body and gives its inner part."""
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["error"]["code"]) == (status, code), body
    assert set(body) == {"object", "message", "type", "param", "code", "error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["object"], body["code"]) == ("error", status)
    assert all(body[name] == body["error"][name] for name in ("message", "type", "param"))
    assert body["message"]
    assert response.headers["x-request-id"]
    error: dict[str, Any] = body["error"]
    return error
