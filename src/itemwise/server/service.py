"""The service behind the API: a scorer that loads in the background, and its queue."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, Literal, Protocol, TypeVar

from itemwise.config import ServerConfig
from itemwise.engine.scheduler import Core, Job, QueueLimits, Scheduler
from itemwise.errors import (
    EngineLostError,
    ItemwiseError,
    RefusedError,
    RequestError,
    SelfCheckError,
    ShuttingDownError,
)
from itemwise.request.calls import Call, Prepared
from itemwise.types import ScoreRequest, StepStats

T = TypeVar("T")
State = Literal["loading", "ready", "failed", "draining"]


class AnyScorer(Protocol):
    """The part of a `Scorer` that the server needs."""

    def prepare(self, fields: Mapping[str, Any], /) -> ScoreRequest:
        """Checks and tokenises raw fields; unknown ones are ignored. Called from any thread.

        Raises:
            RequestError: the request is invalid.
        """
        ...

    def prepare_call(
        self, call: Call[T], between_pieces: Callable[[], None] | None = None, /
    ) -> Prepared[T]:
        """Checks and tokenises a call. Called from any thread.

        Calls `between_pieces` between pieces of text, which raises to give up.

        Raises:
            RequestError: the call is invalid.
        """
        ...

    @property
    def engine(self) -> Core:
        """The engine that scores prepared requests."""
        ...

    def info(self) -> dict[str, Any]:
        """JSON values about what runs. Called from any thread."""
        ...


class Service:
    """A scorer and its state: loading, ready, draining or failed.

    Args:
        config: of the server.
        load: creates the scorer; called once, on its own thread.
        on_loaded: called on that thread afterwards, also if loading failed.
        on_lost: called on the engine's thread if no request can be scored any more.

    Attributes:
        failure: why the service can never score again, or None.
        on_step: called with each completed step.
        drained: whether the engine's thread has ended, once `drain` has returned.
    """

    def __init__(
        self,
        config: ServerConfig,
        load: Callable[[], AnyScorer],
        on_loaded: Callable[[Service], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self.config = config
        self.names = model_names(config)
        self.failure: BaseException | None = None
        self._load = load
        self.on_step: Callable[[StepStats], None] | None = None
        self.drained = True
        self._on_loaded = on_loaded
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._draining = False
        self._drain_lock = threading.Lock()
        self._drain_over = False
        self._loaded: tuple[AnyScorer, Scheduler] | None = None
        self._loader = threading.Thread(target=self._load_scorer, name="itemwise-load", daemon=True)

    @property
    def state(self) -> State:
        """The current state of the service."""
        if self._draining:
            return "draining"
        if self.failure is not None:
            return "failed"
        return "loading" if self._loaded is None else "ready"

    @property
    def loading(self) -> bool:
        """Whether the loading thread is still running, even while the service drains."""
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
        """Starts loading and returns at once."""
        self._loader.start()

    def check_ready(self) -> None:
        """Returns if the service can score.

        Raises:
            RefusedError: the scorer is still loading, could not be loaded, or is broken.
            ShuttingDownError: the server is draining.
        """
        match self.state:
            case "draining":
                raise ShuttingDownError("the server is shutting down and accepts no new requests")
            case "failed":
                code = "unhealthy"
                if isinstance(self.failure, SelfCheckError):
                    code = self.failure.code
                what = (
                    "the model could not be loaded" if self._loaded is None else "the engine failed"
                )
                raise RefusedError(code, f"{what}; see the server's log")
            case "loading":
                raise RefusedError("not_ready", "the model is still loading; try again later")

    def check_model(self, name: Any) -> None:
        """Returns if `name` is this server's model, empty, or None.

        Raises:
            RequestError: it is not.
        """
        if name is None or name == "" or name in self.names:
            return
        shown = {self.config.model_name, self.config.shown_model_path}
        would_do = ", ".join(
            repr(n) for n in self.names if n != self.config.model_path or n in shown
        )
        got = repr(name[:100]) if isinstance(name, str) else f"of type {type(name).__name__}"
        raise RequestError(
            "model_not_found",
            f"`model` is {got}, expected one of {would_do}, or no `model` field",
            "model",
        )

    def prepare(self, call: Call[T], between_pieces: Callable[[], None]) -> tuple[Prepared[T], int]:
        """A call that is ready, and its cost in tokens, for `submit`.

        Raises what `check_ready`, the scorer and `between_pieces` raise.

        Raises:
            RequestError: it has too many tokens or labels for this server.
        """
        self.check_ready()
        assert self.scorer is not None
        prepared = self.scorer.prepare_call(call, between_pieces)
        request = prepared.request
        cost, most = self.scorer.engine.cost(request), self.config.max_request_tokens
        if cost > most:
            raise RequestError(
                "too_many_tokens",
                f"the request has {cost} tokens to compute, at most {most} are allowed; send "
                "several requests",
                prepared.items,
            )
        num_labels, most = sum(map(len, request.labels)), self.config.max_request_labels
        if num_labels > most:
            raise RequestError(
                "too_many_labels",
                f"the request asks for {num_labels} scores, labels summed over items; at most "
                f"{most} are allowed; send several requests",
                prepared.labels,
            )
        return prepared, cost

    def submit(self, request: ScoreRequest, cost: int) -> tuple[Job, Scheduler]:
        """Queues a request; raises what `check_ready` and `Scheduler.submit` raise."""
        self.check_ready()
        assert self.scheduler is not None
        return self.scheduler.submit(request, cost), self.scheduler

    def drain(self) -> None:
        """Refuses new requests; returns when accepted ones are finished or their time is over.

        There is only one drain with one time limit: a second call waits for the first to end.
        """
        with self._lock:
            self._draining = True
        with self._drain_lock:
            if self.scheduler is not None and not self._drain_over:
                self.drained = self.scheduler.drain(self.config.drain_timeout_s)
            self._drain_over = True

    def _load_scorer(self) -> None:
        config = self.config
        limits = QueueLimits(
            config.max_queued_requests, config.max_queued_tokens, config.max_timeout_s
        )
        try:
            scorer = self._load()
            # Objects alive now stay alive, so the garbage collector need not scan them again.
            gc.collect()
            gc.freeze()
            with self._lock:
                if not self._draining:
                    scheduler = Scheduler(
                        scorer.engine, limits, self._report_step, self._lose, config.strict_priority
                    )
                    self._loaded = scorer, scheduler
        except BaseException as error:  # stored here, raised again by `serve`
            self.failure = error
        if self._on_loaded is not None:
            self._on_loaded(self)

    def _report_step(self, step: StepStats) -> None:
        if self.on_step is not None:
            self.on_step(step)

    def _lose(self, error: BaseException) -> None:
        if not isinstance(error, ItemwiseError):
            error = EngineLostError(f"the engine stopped with {type(error).__name__}")
        self.failure = error
        if self._on_lost is not None:
            self._on_lost()


def model_names(config: ServerConfig) -> tuple[str, ...]:
    """Names that clients may use: the served name, the path, its last components, `default`."""
    parts = [part for part in PurePath(config.model_path).parts if part != "/"]
    names = [config.model_name, config.model_path, "/".join(parts[-2:]), *parts[-1:], "default"]
    return tuple(dict.fromkeys(name for name in names if name))
