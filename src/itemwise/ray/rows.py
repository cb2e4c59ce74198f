"""Scores the windows of a job over files on engines of a Ray cluster.

A job reads, keeps and writes as without Ray, so it can go on where it was; only rows and results
travel. The engines live as long as the job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.util import ActorPool

from itemwise.offline.rows import Row, RowForm, RowScorer
from itemwise.progress import ProgressFn, silent
from itemwise.ray.settings import Engines

LOCAL = "local"


def connect(address: str) -> None:
    """Joins the cluster at an address; `local` starts one on this machine."""
    where: dict[str, Any] = (
        {"include_dashboard": False} if address == LOCAL else {"address": address}
    )
    ray.init(**where, log_to_driver=False, ignore_reinit_error=True)


class RayRows:
    """Scores batches of rows, as `RowScorer` does, on several engines.

    Ray starts an engine again where one ended, and gives it the rows that the other had.

    Args:
        form: of the rows.
        model: folder of a checkpoint on each machine, or its Hub id.
        engines: how many, on what.
        settings: of the engine, as of `Scorer.from_pretrained`.

    Attributes:
        scorer: has the `info` of the engines.
        num_items: items scored so far.
        num_tokens: tokens of these, as if each had been computed alone.
    """

    def __init__(
        self, form: RowForm, model: str, engines: Engines, settings: Mapping[str, Any]
    ) -> None:
        self.scorer = self
        self._batch_rows = engines.batch_rows
        remote: Any = ray.remote(_Actor)
        actor = remote.options(
            max_restarts=-1, max_task_retries=-1, **engines.actor_options(settings)
        )
        self._actors = [actor.remote(form, model, settings) for _ in range(engines.least)]
        self._pool: Any = ActorPool(self._actors)
        self.num_items = self.num_tokens = 0

    def info(self) -> dict[str, Any]:
        """What runs on the first engine, with the computed tokens of all."""
        infos = ray.get([actor.info.remote() for actor in self._actors])
        return {**infos[0], "computed_tokens": sum(each["computed_tokens"] for each in infos)}

    def __call__(
        self, rows: Sequence[Row], on_progress: ProgressFn = silent
    ) -> list[dict[str, Any]]:
        """The results of the rows, in their order; see `RowScorer`."""
        found: list[dict[str, Any]] = []
        for results, num_items, num_tokens in self._scored(rows):
            self.num_items += num_items
            self.num_tokens += num_tokens
            found += results
            on_progress("rows", len(found), len(rows))
        return found

    def _scored(self, rows: Sequence[Row]) -> Iterator[tuple[list[dict[str, Any]], int, int]]:
        size = self._batch_rows
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        scored: Iterator[tuple[list[dict[str, Any]], int, int]] = self._pool.map(
            lambda actor, batch: actor.score.remote(batch), batches
        )
        return scored


class _Actor:
    """An engine."""

    def __init__(self, form: RowForm, model: str, settings: Mapping[str, Any]) -> None:
        from itemwise.scorer import Scorer

        self._score = RowScorer(Scorer.from_pretrained(model, **settings), form, model)

    def score(self, rows: Sequence[Row]) -> tuple[list[dict[str, Any]], int, int]:
        """The results of rows, how many items were scored for them, and the tokens of these."""
        before = self._score.num_items, self._score.num_tokens
        results = self._score(rows)
        return results, self._score.num_items - before[0], self._score.num_tokens - before[1]

    def info(self) -> dict[str, Any]:
        """What runs."""
        return self._score.scorer.info()
