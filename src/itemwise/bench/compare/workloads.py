"""The workloads of `itemwise bench compare`: seeded token ids of a given shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from itemwise.errors import ConfigError
from itemwise.models.config import ModelConfig

LABELS = (1, 2)  # token ids of the labels of every request


@dataclass(frozen=True)
class BenchRequest:
    """A query, its items and the labels of all of them, in token ids."""

    query: list[int]
    items: list[list[int]]
    labels: tuple[int, ...] = LABELS


@dataclass(frozen=True)
class Workload:
    """Requests of one shape, each with its own query.

    Attributes:
        name: its name.
        query_tokens: tokens of each query.
        item_tokens: tokens of each item of a request.
        num_requests: requests.
    """

    name: str
    query_tokens: int
    item_tokens: tuple[int, ...]
    num_requests: int = 1

    @property
    def num_items(self) -> int:
        """Items of all requests."""
        return len(self.item_tokens) * self.num_requests

    def requests(self, vocab_size: int) -> list[BenchRequest]:
        """The requests; a smaller workload of the same shape has the same first ones."""
        rng = np.random.default_rng(0)

        def draw(count: int) -> list[int]:
            ids: list[int] = rng.integers(0, vocab_size, count).tolist()
            return ids

        return [
            BenchRequest(draw(self.query_tokens), [draw(count) for count in self.item_tokens])
            for _ in range(self.num_requests)
        ]

    def useful_flops(self, model: ModelConfig) -> float:
        """Multiplications and additions to score the workload, every query computed once.

        Counts the linear layers of each token, and attention of each token to those it sees; all of
        the last layer, and nothing for the labels.
        """
        heads = (model.num_heads + model.num_kv_heads) * model.head_dim
        weights = model.hidden_size * (2 * heads + 3 * model.mlp_size) * model.num_layers
        query = self.query_tokens
        tokens = query + sum(self.item_tokens)
        pairs = _causal(query) + sum(query * n + _causal(n) for n in self.item_tokens)
        attention = 4 * pairs * model.num_heads * model.head_dim * model.num_layers
        return self.num_requests * float(2 * tokens * weights + attention)


def _causal(tokens: int) -> int:
    return tokens * (tokens + 1) // 2


def _mixed_lengths(count: int, low: int, high: int) -> tuple[int, ...]:
    logs = np.random.default_rng(0).uniform(math.log(low), math.log(high), count)
    return tuple(int(n) for n in np.exp(logs).round())


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("contract", 2000, (20,) * 500),
        Workload("contract-64", 2000, (20,) * 64),
        Workload("contract-2000", 2000, (20,) * 2000),
        Workload("short", 300, (20,) * 10, num_requests=16),
        *(
            Workload(f"runbook-{n}", 4, tuple(5 + i % 2 for i in range(n)))
            for n in (1, 8, 32, 64, 128)
        ),
        Workload("long", 4000, (400,) * 50),
        Workload("mixed", 1000, _mixed_lengths(200, 4, 200)),
    )
}


def find_workloads(names: Sequence[str]) -> list[Workload]:
    """Workloads by name.

    Raises:
        ConfigError: a name is unknown.
    """
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown or not names:
        raise ConfigError(
            f"`workloads` has {', '.join(unknown) or 'none'}, expected some of "
            + ", ".join(WORKLOADS)
        )
    return [WORKLOADS[name] for name in names]
