"""Which replica takes a request: one that has the pages of its query, unless it is overloaded.

Pure functions of a key, names and loads: no network, no clock. A load balancer and the simulation
(`capacity/`) call the same code.

Rendezvous hashing (Thaler and Ravishankar, 1998) gives each key an order of all replicas. Routers
that know nothing of each other agree on it, and a replica that comes or goes moves only its own
keys. Where the first of the order is overloaded the next one takes the request, so the requests of
a popular query stay on a few replicas, which all have its pages (consistent hashing with bounded
loads; Mirrokni, Thorup and Zadimoghaddam, 2018).
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from itemwise.types import Tokens

PolicyName = Literal["random", "two-choices", "prefix"]
# Requests that the replica with a query's pages may have above the mean of all.
# `docs/capacity.md` shows other values.
SLACK_REQUESTS = 1.0
_MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Policy(Protocol):
    """Chooses a replica for each request."""

    def choose(self, key: bytes | None, names: Sequence[str], loads: Sequence[float]) -> int:
        """The place in `names` of the replica that takes a request.

        Args:
            key: stands for the request's query (`query_key`); None if nothing can be shared.
            names: of the replicas that can take requests, at least one.
            loads: of each, in any one unit: requests under way, or tokens still to compute.
        """
        ...


class RandomChoice:
    """Any replica, as a load balancer without memory does."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def choose(self, key: bytes | None, names: Sequence[str], loads: Sequence[float]) -> int:
        """See `Policy`."""
        return self._random.randrange(len(names))


class TwoChoices:
    """The less loaded of two replicas at random (Mitzenmacher, 1996)."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def choose(self, key: bytes | None, names: Sequence[str], loads: Sequence[float]) -> int:
        """See `Policy`."""
        if len(names) == 1:
            return 0
        first, second = self._random.sample(range(len(names)), 2)
        return first if loads[first] <= loads[second] else second


class PrefixAware:
    """The first replica in the key's order that is not overloaded; `TwoChoices` without a key.

    Overloaded is a replica whose load exceeds the mean of all by more than `slack`.

    Args:
        slack: in the unit of loads.
        seed: of the choice of the two.
    """

    def __init__(self, slack: float = SLACK_REQUESTS, seed: int = 0) -> None:
        if not slack >= 0:
            raise ValueError(f"`slack` is {slack}, expected 0 or more")
        self._slack = slack
        self._other = TwoChoices(seed)

    def choose(self, key: bytes | None, names: Sequence[str], loads: Sequence[float]) -> int:
        """See `Policy`."""
        if key is None:
            return self._other.choose(key, names, loads)
        most = sum(loads) / len(loads) + self._slack
        home = int(np.argmax(_weights(key, tuple(names))))
        if loads[home] <= most:
            return home
        return next(place for place in preferred(key, names) if loads[place] <= most)


POLICIES: dict[PolicyName, Callable[[int], Policy]] = {
    "random": RandomChoice,
    "two-choices": TwoChoices,
    "prefix": lambda seed: PrefixAware(seed=seed),
}


def query_key(query: str | Tokens) -> bytes:
    """16 bytes that stand for a query, as text or token ids: the same in every process."""
    raw = query.encode("utf-8", "surrogatepass") if isinstance(query, str) else _raw_ids(query)
    return hashlib.blake2b(raw, digest_size=16).digest()


def preferred(key: bytes, names: Sequence[str]) -> list[int]:
    """Places in `names`, the one that a key's requests go to first, then where they go instead."""
    return [int(place) for place in np.argsort(_weights(key, tuple(names)))[::-1]]


def _raw_ids(tokens: Tokens) -> bytes:
    return np.asarray(tokens, np.int32).tobytes()


def _weights(key: bytes, names: tuple[str, ...]) -> NDArray[np.uint64]:
    """A number for each name, uint64 [names], which looks random and depends on key and name."""
    salt = np.uint64(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()))
    return _mixed(_hashes(names) ^ salt)


@functools.lru_cache(maxsize=16)
def _hashes(names: tuple[str, ...]) -> NDArray[np.uint64]:
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    return np.array([int.from_bytes(digest) for digest in digests], np.uint64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The step of SplitMix64 (Steele, Lea and Flood, 2014): every bit of a value moves all bits."""
    step, first, second = _MIX
    values = values + step
    values = (values ^ (values >> np.uint64(30))) * first
    values = (values ^ (values >> np.uint64(27))) * second
    return values ^ (values >> np.uint64(31))
