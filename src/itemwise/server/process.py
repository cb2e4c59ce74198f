"""Runs the API as a process: socket, start-up lines, signals, exit status."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
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
from itemwise.machine import share_memory_between_threads
from itemwise.server.app import app_of
from itemwise.server.connections import ConnectionLimits, backlog, fit_open_files
from itemwise.server.http1 import protocol
from itemwise.server.keys import is_loopback
from itemwise.server.logs import set_up_logs
from itemwise.server.output import Lines, keep_standard_streams
from itemwise.server.service import AnyScorer, Service

SLOW_CLIENT_S = 5  # time that clients have to receive their answers after the drain
# Maximum time from the drain timeout to the end of the process; supervisors must allow for it.
EXIT_S = LAST_STEP_S + SLOW_CLIENT_S + 2
DRAINING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
REPEAT_S = 1.0  # supervisors may send a signal to a process and to its group: that is one signal
FLUSH_S = 0.5  # time that the last lines have to get out
logger = logging.getLogger("itemwise.server")


def serve(config: ServerConfig, load: Callable[[], AnyScorer]) -> int:
    """Serves until SIGTERM or Ctrl-C and returns the exit status, 0.

    After SIGTERM, SIGHUP or Ctrl-C, accepted requests have `drain_timeout_s` to finish and new ones
    get 503; the process ends at most `EXIT_S` later. A second signal ends it at once.

    Args:
        config: of the server.
        load: creates the scorer; called once the socket listens.

    Raises:
        ConfigError: the server cannot listen on the address.
        ItemwiseError: the scorer could not be loaded, or its device was lost.
    """
    keep_standard_streams()
    share_memory_between_threads()
    out, log = Lines(1), Lines(2)
    set_up_logs(config.log_format, log, config.log_level)
    started = time.perf_counter()
    listener = listen(config.host, config.port)
    if not config.has_key and not is_loopback(config.host):
        logger.warning(
            "LISTENING WITHOUT AN API KEY on %s: whoever reaches port %d can use this server. Set "
            "--api-key-file, or listen on 127.0.0.1.",
            config.host,
            listener.getsockname()[1],
        )

    def on_loaded(service: Service) -> None:
        if service.failure is not None:
            server.should_exit = True
        elif service.scorer is not None:
            server.greeted.wait()
            for line in _ready_lines(service.scorer, config, url, time.perf_counter() - started):
                out.write(line)

    def on_lost() -> None:
        server.should_exit = True  # so that the supervisor starts a new process

    service = Service(config, load, on_loaded, on_lost)
    url = _url(config.host, listener)
    limits = ConnectionLimits(
        *fit_open_files(config.max_connections), keep_alive_s=config.keep_alive_s
    )
    server = _Server(service, limits, out, f"Itemwise {__version__} listening on {url}")
    try:
        server.run(sockets=[listener])
    finally:
        for lines in (out, log):
            lines.flush(FLUSH_S)
    if service.failure is not None:
        raise service.failure
    if service.loading or not service.drained:
        # A thread may still be inside a compiler or a step, where a normal exit would crash.
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
            bound.listen()  # now, as another process may have bound to it at the same moment
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

    def __init__(
        self, service: Service, limits: ConnectionLimits, out: Lines, greeting: str
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app_of(service),
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=SLOW_CLIENT_S,
                backlog=backlog(limits.max_connections),
                http=protocol(limits),
                loop="asyncio",  # uvicorn would take uvloop where it is installed
                ws="none",
            )
        )
        self.greeted = threading.Event()
        self._out = out
        self._service = service
        self._greeting = greeting
        self._drain_task: asyncio.Task[None] | None = None
        self._signal: int | None = None  # the first one, and when it came
        self._signalled_at = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._out.write(self._greeting)
        self.greeted.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, does not raise the signals again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._loop = asyncio.get_running_loop()
        # A hangup that is ignored already, as by `nohup`, stays ignored.
        signals = [number for number in DRAINING if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._signalled_at = sig, now
            self._loop.call_soon_threadsafe(self._begin_drain)
        elif sig != self._signal or sig == signal.SIGINT or now - self._signalled_at > REPEAT_S:
            os._exit(128 + sig)

    def _begin_drain(self) -> None:
        self._out.write(
            "Shutting down when accepted requests are finished. Press Ctrl-C again to exit at once."
        )
        self._drain_task = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        # The socket stays open meanwhile, so that new clients get an error message, not a refusal.
        await asyncio.to_thread(self._service.drain)
        self.should_exit = True


def _ready_lines(
    scorer: AnyScorer, config: ServerConfig, url: str, seconds: float
) -> Iterator[str]:
    info = scorer.info()
    profile = info.get("profile")
    if isinstance(profile, dict):
        name, why = profile["name"], profile["why"]
        text = f"profile {name}" if name else "none"
        logger.info("Rankings: %s, as %s.", text, why)
    verdict = info.get("self_check", "unknown")
    if isinstance(verdict, dict):
        verdict = verdict.get("status", "unknown")
    yield f"Ready after {seconds:.1f} s; self-check {verdict}. Try it:"
    key = " -H 'Authorization: Bearer '\"$ITEMWISE_API_KEY\"" if config.has_key else ""
    body = orjson.dumps(_example(scorer)).decode()
    yield f"  curl {url}/v1/score{key} -d '{body}'"


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
