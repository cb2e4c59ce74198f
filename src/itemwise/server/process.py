"""Runs the API as a process: socket, start-up lines, signals, exit status."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import orjson
import uvicorn

from itemwise import __version__
from itemwise.config import ServerConfig
from itemwise.engine.scheduler import LAST_STEP_S
from itemwise.errors import ConfigError, RequestError
from itemwise.progress import say
from itemwise.server.app import app_of
from itemwise.server.connections import ConnectionLimits, backlog, fit_open_files
from itemwise.server.http1 import protocol
from itemwise.server.logs import set_up_logs
from itemwise.server.service import AnyScorer, Service

SLOW_CLIENT_S = 5  # time that clients have to receive their answers after the drain
# Maximum time from the drain timeout to the end of the process; supervisors must allow for it.
EXIT_S = LAST_STEP_S + SLOW_CLIENT_S + 2
_INTERRUPTED = 130  # what shells report for a process that Ctrl-C ended


def serve(config: ServerConfig, load: Callable[[], AnyScorer]) -> int:
    """Serves until SIGTERM or Ctrl-C and returns the exit status, 0.

    After the first signal, accepted requests have `drain_timeout_s` to finish and new ones get 503;
    the process ends at most `EXIT_S` later. A second Ctrl-C ends it at once.

    Args:
        config: of the server.
        load: creates the scorer; called once the socket listens.

    Raises:
        ConfigError: the server cannot listen on the address.
        ItemwiseError: the scorer could not be loaded, or its device was lost.
    """
    set_up_logs(config.log_format, config.log_level)
    started = time.perf_counter()
    listener = listen(config.host, config.port)

    def on_loaded(service: Service) -> None:
        if service.failure is not None:
            server.should_exit = True
        elif service.scorer is not None:
            server.greeted.wait()
            _announce_ready(service.scorer, config, url, time.perf_counter() - started)

    def on_lost() -> None:
        server.should_exit = True  # so that the supervisor starts a new process

    service = Service(config, load, on_loaded, on_lost)
    url = _url(config.host, listener)
    limits = ConnectionLimits(
        *fit_open_files(config.max_connections), keep_alive_s=config.keep_alive_s
    )
    server = _Server(service, limits, f"Itemwise {__version__} listening on {url}")
    server.run(sockets=[listener])
    if service.failure is not None:
        raise service.failure
    if service.loading or not service.drained:
        # A thread may still be inside a compiler or a step, where a normal exit would crash.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 picks a free one.

    Raises:
        ConfigError: the host is unknown, or the port is taken.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # If the protocol is named, asyncio turns off Nagle's algorithm, which delays answers by 40
        # ms.
        bound = socket.socket(family, kind, proto)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot listen on `host` {host} and `port` {port} ({error.strerror}); choose others "
            "with `--host` and `--port`"
        ) from error
    return bound


class _Server(uvicorn.Server):
    """uvicorn, but signals drain the service first and do not decide the exit status."""

    def __init__(self, service: Service, limits: ConnectionLimits, greeting: str) -> None:
        super().__init__(
            uvicorn.Config(
                app_of(service),
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=SLOW_CLIENT_S,
                backlog=backlog(limits.max_connections),
                http=protocol(limits),
                ws="none",
            )
        )
        self.greeted = threading.Event()
        self._service = service
        self._greeting = greeting
        self._drain_task: asyncio.Task[None] | None = None
        self._signalled = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        say(self._greeting)
        self.greeted.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, does not raise the signals again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self._signalled:
            self._signalled = True
            self._loop.call_soon_threadsafe(self._begin_drain)
        elif sig == signal.SIGINT:
            os._exit(_INTERRUPTED)

    def _begin_drain(self) -> None:
        say(
            "Shutting down when accepted requests are finished. Press Ctrl-C again to exit at once."
        )
        self._drain_task = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        # The socket stays open meanwhile, so that new clients get an error message, not a refusal.
        await asyncio.to_thread(self._service.drain)
        self.should_exit = True


def _announce_ready(scorer: AnyScorer, config: ServerConfig, url: str, seconds: float) -> None:
    verdict = scorer.info().get("self_check", "unknown")
    if isinstance(verdict, dict):
        verdict = verdict.get("status", "unknown")
    say(f"Ready after {seconds:.1f} s; self-check {verdict}. Try it:")
    key = "" if config.api_key is None else " -H 'Authorization: Bearer '\"$ITEMWISE_API_KEY\""
    body = orjson.dumps(_example(scorer)).decode()
    say(f"  curl {url}/v1/score{key} -d '{body}'")


def _example(scorer: AnyScorer) -> dict[str, object]:
    """A request that this model can score: in text if possible, else in token ids."""
    words = {"query": "desk lamp", "items": ["Brass lamp for the desk", "Tea kettle"]}
    labels = [" yes", " no"]
    for body in (
        {**words, "apply_template": True, "apply_softmax": True},
        {**words, "labels": labels, "apply_softmax": True},
    ):
        try:
            scorer.prepare(body)
        except RequestError:
            continue
        return body
    return {"query": [1, 2], "items": [[3], [4, 5]], "label_token_ids": [6, 7]}


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
