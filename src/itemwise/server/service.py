"""What is behind the API: a scorer that loads in the background, and its queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import PurePath
from typing import Any, Literal, Protocol

from itemwise.config import ServerConfig
from itemwise.errors import (
    RefusedError,
    RequestError,
    SelfCheckError,
    ShuttingDownError,
)
from itemwise.scheduler import Scheduler
from itemwise.types import ScoreRequest, ScoreResult

State = Literal["loading", "ready", "failed", "draining"]


class AnyScorer(Protocol):
    """What the server needs of a `Scorer`."""

    def prepare(self, **fields: Any) -> ScoreRequest:
        """Checks and tokenises raw fields; raises `RequestError`. Called from any thread."""
        ...

    def run(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Scores prepared requests. Called from one thread."""
        ...

    def info(self) -> dict[str, Any]:
        """JSON values about what runs. Called from any thread."""
        ...


class Service:
    """A scorer's life: loading, ready, draining; or failed.

    Args:
        config: of the server.
        load: makes the scorer; called once, on a thread of its own.
        on_loaded: called on that thread afterwards, also where loading failed.
    """

    def __init__(
        self,
        config: ServerConfig,
        load: Callable[[], AnyScorer],
        on_loaded: Callable[[Service], None] | None = None,
    ) -> None:
        self.config = config
        self.names = model_names(config)
        self.failure: BaseException | None = None
        self._load = load
        self._on_loaded = on_loaded
        self._lock = threading.Lock()
        self._draining = False
        self._loaded: tuple[AnyScorer, Scheduler] | None = None
        self._loader = threading.Thread(target=self._load_scorer, name="itemwise-load", daemon=True)

    @property
    def state(self) -> State:
        """Where in its life the service is."""
        if self._draining:
            return "draining"
        if self.failure is not None:
            return "failed"
        return "loading" if self._loaded is None else "ready"

    @property
    def loading(self) -> bool:
        """Whether the loading thread still runs, draining or not."""
        return self._loader.is_alive()

    @property
    def scorer(self) -> AnyScorer | None:
        """The scorer, once loaded."""
        return self._loaded[0] if self._loaded else None

    @property
    def scheduler(self) -> Scheduler | None:
        """The queue in front of it, once loaded."""
        return self._loaded[1] if self._loaded else None

    def start(self) -> None:
        """Begins to load and returns at once."""
        self._loader.start()

    def check_ready(self) -> None:
        """Returns if scores can be had.

        Raises:
            RefusedError: the scorer still loads, or could not be loaded.
            ShuttingDownError: the server is draining.
        """
        match self.state:
            case "draining":
                raise ShuttingDownError("the server is shutting down and takes no new requests")
            case "failed":
                code = "unhealthy"
                if isinstance(self.failure, SelfCheckError):
                    code = self.failure.code
                raise RefusedError(code, "the model could not be loaded; the server's log says why")
            case "loading":
                raise RefusedError("not_ready", "the model is being loaded; try again later")

    def check_model(self, name: Any) -> None:
        """Returns if `name` is this server's model, or None.

        Raises:
            RequestError: it is not.
        """
        if name is None or name in self.names:
            return
        # A client need not learn where on the server's disk the model lies.
        would_do = ", ".join(repr(n) for n in self.names if not PurePath(n).is_absolute())
        got = repr(name[:100]) if isinstance(name, str) else f"a {type(name).__name__}"
        raise RequestError(
            "model_not_found",
            f"`model` is {got}, expected one of {would_do}, or no `model` at all",
            "model",
        )

    def prepare(self, fields: dict[str, Any]) -> ScoreRequest:
        """A checked request; raises what `check_ready` and the scorer raise."""
        self.check_ready()
        assert self.scorer is not None
        return self.scorer.prepare(**fields)

    def submit(self, request: ScoreRequest) -> Future[ScoreResult]:
        """Queues a request; raises what `check_ready` and `Scheduler.submit` raise."""
        self.check_ready()
        assert self.scheduler is not None
        return self.scheduler.submit(request)

    def drain(self) -> None:
        """Refuses what waits and what comes, and returns once what runs has finished."""
        with self._lock:
            self._draining = True
        if self.scheduler is not None:
            self.scheduler.drain()

    def _load_scorer(self) -> None:
        try:
            scorer = self._load()
            with self._lock:
                if not self._draining:
                    scheduler = Scheduler(scorer.run, self.config.max_queued_requests)
                    self._loaded = scorer, scheduler
        except BaseException as error:  # kept, and raised again by whoever runs the server
            self.failure = error
        if self._on_loaded is not None:
            self._on_loaded(self)


def model_names(config: ServerConfig) -> tuple[str, ...]:
    """Names that clients may use: the served name, the path, its last components, `default`."""
    parts = [part for part in PurePath(config.model_path).parts if part != "/"]
    names = [config.model_name, config.model_path, "/".join(parts[-2:]), *parts[-1:], "default"]
    return tuple(dict.fromkeys(name for name in names if name))
