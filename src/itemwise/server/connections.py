"""Limits of connections: how many may be open, how long each state lasts, and whose turn it is.

`http1.py` speaks the protocol; here is what all connections of a server share.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from itemwise.errors import ConfigError

READ_BYTES = 64 * 1024  # at most read from a connection before others have their turn
TURN_S = 0.002  # parsing of all connections together before the event loop does something else
PATIENCE_S = 1.0  # a connection that waited this long may be closed to make room for another
PROBES = ("/live", "/health")  # paths that get a connection even when all are taken
_SPARE_CONNECTIONS = 64  # beyond the maximum, for probes and for refusals in words
_OTHER_FILES = 64  # log, checkpoint, event loop, libraries
_MIN_FILES = 128
_WARN_EVERY_S = 60.0
logger = logging.getLogger("itemwise.server")


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections may be open, and how many seconds each of their states lasts.

    Attributes:
        max_connections: open connections; further ones are for probes and refusals.
        spare: connections beyond `max_connections`.
        head_s: from opening, or from the first byte of a later request, to the end of its head.
        body_s: from the end of the head to the end of the body. Readers of bodies give up earlier,
            with an answer; this holds where nobody reads.
        answer_s: from the first byte of an answer that the network does not take to its last.
        keep_alive_s: between an answer and the first byte of the next request.
        linger_s: for a client that still sends a body when it was already answered.
    """

    max_connections: int
    spare: int = _SPARE_CONNECTIONS
    head_s: float = 30.0
    body_s: float = 75.0
    answer_s: float = 60.0
    keep_alive_s: float = 75.0
    linger_s: float = 30.0


class Member(Protocol):
    """What the pool needs of a connection."""

    def abort(self) -> None:
        """Closes it at once."""
        ...

    def advance(self) -> bool:
        """Parses a little of what has come; whether there is more to do."""
        ...


class Pool:
    """All connections of a server: who is in, who must leave, who is parsed next.

    Attributes:
        limits: their limits.
        buffer: what any of them reads into; it is copied before the next one reads.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.buffer = memoryview(bytearray(READ_BYTES))
        self._members: set[Member] = set()
        self._waiting: dict[Member, float] = {}  # without a request, and since when; oldest first
        self._turns: deque[Member] = deque()
        self._warned = float("-inf")

    @property
    def is_full(self) -> bool:
        """Whether more than the maximum are open."""
        return len(self._members) > self.limits.max_connections

    @property
    def has_turns(self) -> bool:
        """Whether a connection waits for its turn."""
        return bool(self._turns)

    def enter(self, member: Member) -> bool:
        """Lets a new connection in; whether it is within the maximum.

        Where there is no room, the connection that has waited longest for a request is closed. So
        a client that opens connections and says nothing only drives out its own.
        """
        self._members.add(member)
        most = self.limits.max_connections
        within = len(self._members) <= most or self._drive_out(PATIENCE_S)
        if not within:
            self._warn()
            if len(self._members) > most + self.limits.spare and not self._drive_out(0.0):
                self.leave(member)
                member.abort()
                return False
        self.wait(member)
        return within

    def leave(self, member: Member) -> None:
        """Forgets a connection; may be called twice."""
        self._members.discard(member)
        self._waiting.pop(member, None)

    def wait(self, member: Member) -> None:
        """Notes that a connection has no request from now on."""
        if member in self._members:
            self._waiting[member] = time.monotonic()

    def begin(self, member: Member) -> None:
        """Notes that a connection has a request."""
        self._waiting.pop(member, None)

    def take_turn(self, member: Member) -> None:
        """Has `advance` called soon, as often as it asks, in turn with the other connections."""
        self._turns.append(member)
        if len(self._turns) == 1:
            asyncio.get_running_loop().call_soon(self._run_turns)

    def _run_turns(self) -> None:
        end = time.perf_counter() + TURN_S
        while self._turns:
            # It stays in the queue meanwhile, so that `take_turn` schedules no second run.
            member = self._turns[0]
            try:
                if member.advance():
                    self._turns.append(member)
            except Exception:
                logger.exception("A connection failed and is closed.")
                member.abort()
            self._turns.popleft()
            if self._turns and time.perf_counter() > end:
                asyncio.get_running_loop().call_soon(self._run_turns)
                return

    def _drive_out(self, patience_s: float) -> bool:
        """Closes the connection that has waited longest, if it has for `patience_s`."""
        oldest = next(iter(self._waiting), None)
        if oldest is None or time.monotonic() - self._waiting[oldest] < patience_s:
            return False
        self.leave(oldest)
        oldest.abort()
        return True

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned > _WARN_EVERY_S:
            self._warned = now
            logger.warning(
                "%d connections are open, the maximum (`max_connections`): new ones are refused, "
                "except for probes. This is logged once a minute at most.",
                self.limits.max_connections,
            )


def fit_open_files(max_connections: int) -> tuple[int, int]:
    """`max_connections` and the spare ones, as far as the process's limit of open files allows.

    Raises the soft limit as far as needed and allowed.

    Raises:
        ConfigError: the limit is too low to serve at all.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return max_connections, _SPARE_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + _SPARE_CONNECTIONS + backlog(max_connections) + _OTHER_FILES
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < wanted:
        allowed = wanted if hard == unlimited else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft == unlimited or soft >= wanted:
        return max_connections, _SPARE_CONNECTIONS
    if soft < _MIN_FILES:
        raise ConfigError(
            f"the limit of open files is {soft} (`ulimit -n`), expected at least {_MIN_FILES}; "
            "raise it"
        )
    left = soft - _OTHER_FILES
    spare = min(_SPARE_CONNECTIONS, left // 4)
    fitting = min(max_connections, left - spare - backlog(left))
    if fitting < max_connections:
        logger.warning(
            "The limit of open files is %d (`ulimit -n`), so at most %d connections are open at a "
            "time instead of %d (`max_connections`).",
            soft,
            fitting,
            max_connections,
        )
    return fitting, spare


def backlog(max_connections: int) -> int:
    """Connections that the kernel may keep until they are accepted.

    The event loop accepts as many at once, before it knows that they are too many.
    """
    return min(128, max(8, max_connections // 4))
