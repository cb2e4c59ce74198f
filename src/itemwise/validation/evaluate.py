"""Isolation and speed of one endpoint, through its HTTP API only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from itemwise.errors import ConfigError, RequestRefusedError
from itemwise.machine import environment
from itemwise.progress import ProgressFn, silent
from itemwise.validation import probes
from itemwise.validation.client import ScoreClient
from itemwise.validation.files import Json, write_json
from itemwise.validation.measures import Scores, speed
from itemwise.validation.sweeps import Sweep, run_sweeps
from itemwise.validation.workloads import DEFAULT, Ids, Workload, as_lists

Mode = Literal["multi", "serial"]
ITEM_COUNTS = (1, 8, 32, 64, 128)
PROBES: tuple[Callable[[probes.Score, Workload, Scores], Json], ...] = (
    probes.order,
    probes.removed,
    probes.added,
    probes.duplicates,
    probes.repeated,
    probes.chunk_sizes,
)


@dataclass(frozen=True)
class Amount:
    """How much is measured.

    Attributes:
        item_counts: numbers of items to time.
        rounds: timed requests per number of items.
        warmup: requests before the timed ones.
        sweep: further sizes than the workload's: `none`, `quick` or `full`.
    """

    item_counts: tuple[int, ...] = ITEM_COUNTS
    rounds: int = 3
    warmup: int = 1
    sweep: Sweep = "quick"

    def __post_init__(self) -> None:
        problems = []
        if not self.item_counts or min(self.item_counts) < 1:
            problems.append(f"`item_counts` is {list(self.item_counts)}, expected numbers from 1")
        if self.rounds < 1:
            problems.append(f"`rounds` is {self.rounds}, expected 1 or more")
        if self.warmup < 0:
            problems.append(f"`warmup` is {self.warmup}, expected 0 or more")
        if problems:
            raise ConfigError("; ".join(problems))


def evaluate(
    client: ScoreClient,
    mode: Mode,
    *,
    workload: Workload = DEFAULT,
    amount: Amount | None = None,
    output: Path | None = None,
    on_progress: ProgressFn = silent,
) -> Json:
    """Measures an endpoint and returns the JSON of `itemwise evaluate`.

    In multi mode all items go in one request; in serial mode each goes in its own request.

    Args:
        client: of the endpoint.
        mode: `multi` or `serial`.
        workload: what is scored.
        amount: how much to measure.
        output: file for the results, rewritten after each stage; until the end its `complete` is
            false and its `error` says why.
        on_progress: called with (what, done, total) at stages and rounds.

    Raises:
        EndpointError: the server is unreachable, too slow or failing, or refuses the workload.
        ResultsError: the file cannot be written.
    """
    return _Evaluation(client, mode, workload, amount or Amount(), output, on_progress).run()


class _Evaluation:
    """One evaluation: its results so far, and its way of scoring."""

    def __init__(
        self,
        client: ScoreClient,
        mode: Mode,
        workload: Workload,
        amount: Amount,
        output: Path | None,
        on_progress: ProgressFn,
    ) -> None:
        self.client, self.mode, self.workload = client, mode, workload
        self.amount, self.output, self.on_progress = amount, output, on_progress
        self.base: Scores = []
        self.results: Json = {
            "mode": mode,
            "url": client.url,
            "model": client.model,
            "dialect": client.dialect,
            "labels": list(workload.labels),
            "delimiter": workload.delimiter,
            "workload": workload.name,
            "apply_softmax": workload.apply_softmax,
            "amount": {**asdict(amount), "item_counts": list(amount.item_counts)},
            "percentiles": "linear interpolation between the closest ranks",
            "complete": False,
            "error": None,
            "environment": environment(),
        }

    def run(self) -> Json:
        """Runs the stages in order; keeps finished measurements whatever happens."""
        stages = self._stages()
        try:
            for done, (name, stage) in enumerate(stages):
                self.on_progress(f"{self.mode}: stages", done, len(stages))
                self.results["stage"] = name
                stage()
                self._save()
        except BaseException as error:
            self.results["error"] = str(error) or type(error).__name__
            self._save()
            raise
        del self.results["stage"]
        self.results["complete"] = True
        self._save()
        self.on_progress(f"{self.mode}: stages", len(stages), len(stages))
        return self.results

    def _stages(self) -> list[tuple[str, Callable[[], None]]]:
        stages: list[tuple[str, Callable[[], None]]] = [
            ("server", self._server),
            ("isolation", self._isolation),
        ]
        if self.mode == "serial":
            stages.append(("delimiter in the query", self._alignment))
        else:
            stages += [(f"probe {p.__name__}", partial(self._probe, p)) for p in PROBES]
            stages.append(("negative control", self._control))
            if self.amount.sweep != "none":
                stages.append(("sweeps", self._sweeps))
        counts = dict.fromkeys(self.amount.item_counts)
        return [*stages, *((f"speed, N={n}", partial(self._speed, n)) for n in counts)]

    def _save(self) -> None:
        if self.output is not None:
            write_json(self.output, self.results)

    def score(self, items: Sequence[Ids], query: Ids | None = None, **more: Any) -> Scores:
        """Scores of items: in one request, or in one request each."""
        batches = [items] if self.mode == "multi" else [[item] for item in items]
        found: Scores = []
        for batch in batches:
            found += self.client.score(
                self.workload.query if query is None else query,
                batch,
                self.workload.labels,
                apply_softmax=self.workload.apply_softmax,
                **more,
            )
        return found

    def _server(self) -> None:
        info = self.client.info()
        self.results["server_info"] = info
        self.results["server_dtype"] = server_dtype(info)
        self.results["notes"] = self._notes(itemwise_engine(info))

    def _notes(self, engine: Json | None) -> list[str]:
        """Notes on reported server settings that do not suit this mode."""
        if engine is None:
            return []
        actual = engine["engine_config"].get("multi_item_scoring_delimiter")
        expected = self.workload.delimiter if self.mode == "multi" else None
        if actual == expected:
            return []
        flag = "--multi-item-scoring-delimiter"
        fix = f"without {flag}" if expected is None else f"with {flag} {expected}"
        return [
            f"the server's delimiter is {actual}, {self.mode} mode of this workload expects "
            f"{expected}: start the server {fix}"
        ]

    def _isolation(self) -> None:
        workload = self.workload
        self.base = self.score(workload.items)
        isolation: Json = {
            "query_ids": list(workload.query),
            "item_ids": as_lists(workload.items),
            "base_scores": self.base,
        }
        self.results["isolation"] = isolation
        for name, item in (
            ("same_length_mutation", workload.same_length_item),
            ("changed_length_mutation", workload.changed_length_item),
        ):
            isolation[name] = probes.mutation(self.score, workload, self.base, item)

    def _alignment(self) -> None:
        delimiter = self.workload.delimiter
        query = (*self.workload.query, *(() if delimiter is None else (delimiter,)))
        self.results["semantic_alignment"] = {
            "query_plus_delimiter_ids": list(query),
            "base_scores_query_plus_delimiter": self.score(self.workload.items, query=query),
        }

    def _probe(self, probe: Callable[[probes.Score, Workload, Scores], Json]) -> None:
        found = self.results.setdefault("probes", {})
        has_chunks = itemwise_engine(self.results["server_info"]) is not None
        if probe is probes.chunk_sizes and not has_chunks:
            why = "This server has no request field for the chunk size"
            found[probe.__name__] = probes.not_measured(why)
            return
        found[probe.__name__] = probe(self.score, self.workload, self.base)

    def _control(self) -> None:
        self.results["negative_control"] = probes.negative_control(self.score, self.workload)

    def _sweeps(self) -> None:
        self.results["sweeps"] = run_sweeps(
            self.score, self.workload, self.amount.sweep, self.on_progress
        )

    def _speed(self, count: int) -> None:
        performance = self.results.setdefault("performance", {})
        items = self.workload.repeated(count)
        latencies = []
        total = self.amount.warmup + self.amount.rounds
        try:
            for number in range(total):
                start = time.perf_counter()
                self.score(items)
                if number >= self.amount.warmup:
                    latencies.append(time.perf_counter() - start)
                self.on_progress(f"{self.mode}: rounds, N={count}", number + 1, total)
        except RequestRefusedError as error:
            self.results.setdefault("performance_refused", {})[str(count)] = str(error)
            return
        performance[str(count)] = speed(latencies, count)


def itemwise_engine(info: Json | None) -> Json | None:
    """The engine's part of `/server_info` if the server is Itemwise, else None."""
    engine = (info or {}).get("engine")
    return engine if isinstance(engine, dict) and "engine_config" in engine else None


def server_dtype(info: Json | None) -> str | None:
    """The type that the server computes in, if it reports one."""
    engine = itemwise_engine(info)
    found = (engine or info or {}).get("dtype")
    return found if found in ("float32", "bfloat16", "float16") else None
