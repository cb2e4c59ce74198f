"""The record of a request on its way through the server, for logs, metrics and traces."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.types import Scope

_KEY = "itemwise.record"
STAGES = ("read", "tokenize", "queue", "prefill", "extend", "encode")


@dataclass
class Record:
    """A request.

    Attributes:
        request_id: its id.
        method: HTTP method.
        path: path, as the client wrote it, without `--root-path`.
        started: when its headers were read, by `perf_counter`.
        status: HTTP status, 0 until one is sent.
        code: stable name of the error, `ok` if there was none.
        items: items scored.
        tokens: tokens of the request, its shared prefix counted once.
        shared_tokens: of these, tokens of the prefix.
        cached_tokens: prefix tokens that were not computed again.
        stages: seconds in each stage, by their names in `STAGES`.
    """

    request_id: str
    method: str
    path: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    code: str = "ok"
    items: int = 0
    tokens: int = 0
    shared_tokens: int = 0
    cached_tokens: int = 0
    stages: dict[str, float] = field(default_factory=dict)

    def seconds(self) -> float:
        """Time since the request arrived."""
        return time.perf_counter() - self.started

    def server_timing(self) -> str:
        """The stages so far as the value of a `Server-Timing` header, in milliseconds."""
        stages = {**self.stages, "total": self.seconds()}
        return ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in stages.items())

    def token_counts(self) -> dict[str, int]:
        """Headers of a scored request's answer that count its tokens; none for other requests."""
        if not self.tokens:
            return {}
        return {
            "x-prompt-tokens": self.tokens,
            "x-shared-tokens": self.shared_tokens,
            "x-cached-tokens": self.cached_tokens,
        }


def attach(scope: Scope, record: Record) -> None:
    """Attaches the record to the request's scope, so that all its handlers find it."""
    scope[_KEY] = record


def record_of(scope: Scope) -> Record:
    """The record of a request."""
    found = scope.get(_KEY)
    return found if isinstance(found, Record) else Record("", "", "")


def route_path(scope: Scope) -> str:
    """The path without `--root-path`, whether or not a proxy has taken that off already."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if root and path.startswith(root + "/") else path
