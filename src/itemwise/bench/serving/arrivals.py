"""Requests at random times, at rising rates, through the scheduler in this process: no HTTP."""

from __future__ import annotations

import dataclasses
import functools
import json
import queue
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from itemwise.bench.pictures import print_runs, wide_console
from itemwise.bench.serving.traffic import Run, Sample, Workload
from itemwise.engine.scheduler import Job, QueueLimits, Scheduler
from itemwise.errors import ConfigError, ItemwiseError
from itemwise.machine import environment
from itemwise.scorer import Scorer
from itemwise.types import ScoreRequest

MAX_REQUESTS = 200_000  # of one rate; they are drawn before its measurement begins
GROWTH = 1.3  # factor from one rate to the next


def run_arrivals(
    model: str,
    *,
    rate: float,
    p99_ms: float,
    seconds: float,
    workload: dict[str, Any],
    check: int,
    out_json: Path | None,
    **settings: Any,
) -> bool:
    """Offers requests at rising rates until the 99th percentile of latency exceeds a limit.

    Gaps are exponential, as between independent clients. Latency counts from the time when a
    request was due.

    Args:
        model: folder of a checkpoint, or its Hub id.
        rate: first rate in requests per second; each next one is 1.3 times as high.
        p99_ms: the limit, in milliseconds.
        seconds: duration of each rate.
        workload: fields of `Workload`, without the vocabulary.
        check: answers of each rate whose bits are compared with each item scored alone.
        out_json: file for all figures.
        settings: fields of `EngineConfig`.

    Returns:
        Whether all compared bits were equal and no request failed.

    Raises:
        ConfigError: a setting is out of bounds.
    """
    if not (rate > 0 and seconds > 0 and rate * seconds <= MAX_REQUESTS):
        raise ConfigError(
            f"`rate` is {rate:g} and `seconds` {seconds:g}, expected above 0, and at most "
            f"{MAX_REQUESTS} requests"
        )
    engine = Scorer.from_pretrained(model, **settings).engine
    offered = Workload(vocab_size=engine.model_config.vocab_size, **workload)
    scheduler = Scheduler(engine, QueueLimits(max_requests=MAX_REQUESTS))
    console, rows, best, first = wide_console(), list[dict[str, Any]](), None, 0
    try:
        _offer(scheduler, offered, rate, range(-8, 0))  # warm-up
        while rate * seconds <= MAX_REQUESTS:
            numbers = range(first, first + max(8, round(rate * seconds)))
            run = _offer(scheduler, offered, rate, numbers)
            first = numbers.stop
            wrong = _count_wrong(scheduler, offered, run.samples[:check])
            rows.append({**run.summary(), "checked": min(check, len(run.samples)), "wrong": wrong})
            console.print(f"{rate:.4g} requests/s: {_summary_line(rows[-1])}")
            within = "latency_ms" in rows[-1] and rows[-1]["latency_ms"]["p99"] <= p99_ms
            if not within or wrong or set(rows[-1]["codes"]) != {"ok"}:
                break
            best, rate = rows[-1], rate * GROWTH
    finally:
        scheduler.drain(seconds)
    print_runs(rows)
    reached = f"{best['items_per_s']:.5g} items/s" if best else "no rate"
    console.print(f"p99 within {p99_ms:g} ms: {reached}")
    if out_json is not None:
        out_json.parent.mkdir(parents=True, exist_ok=True)
        report = {
            "benchmark": "arrivals",
            **environment(),
            "workload": dataclasses.asdict(offered),
            "engine": engine.info(),
            "p99_bound_ms": p99_ms,
            "best": best,
            "runs": rows,
        }
        out_json.write_text(json.dumps(report, indent=2) + "\n")
    return all(row["wrong"] == 0 and set(row["codes"]) == {"ok"} for row in rows)


def request_of(workload: Workload, number: int) -> ScoreRequest:
    """Request `number` of a workload, valid by construction."""
    body = workload.body(number)
    items, labels = body["items"], tuple(body["label_token_ids"])
    return ScoreRequest(
        body["query"], items, (labels,) * len(items), apply_softmax=workload.apply_softmax
    )


def _offer(scheduler: Scheduler, workload: Workload, rate: float, numbers: Sequence[int]) -> Run:
    requests = [request_of(workload, number) for number in numbers]
    run, gaps, answered = Run(rate, None), random.Random(workload.seed), queue.SimpleQueue[Any]()

    def collect() -> None:
        for _ in requests:
            number, due, job = answered.get()
            run.samples.append(_sample(number, due, job))

    collector = threading.Thread(target=collect, daemon=True)  # must not hold up Ctrl-C
    collector.start()
    started = due = time.perf_counter()
    for number, request in zip(numbers, requests, strict=True):
        due += gaps.expovariate(rate)
        time.sleep(max(0.0, due - time.perf_counter()))
        job = scheduler.submit(request)
        job.future.add_done_callback(functools.partial(_put, answered, (number, due, job)))
    collector.join()
    run.seconds = time.perf_counter() - started
    return run


def _put(answered: queue.SimpleQueue[Any], entry: tuple[int, float, Job], _: object) -> None:
    answered.put(entry)


def _sample(number: int, due: float, job: Job) -> Sample:
    """The outcome of a finished request, with the scores computed from its result."""
    try:
        scored = job.future.result()
    except Exception as error:  # a step can raise anything
        code = error.code if isinstance(error, ItemwiseError) else type(error).__name__
        return Sample(number, code, time.perf_counter() - due)
    scores = scored.result().scores
    return Sample(number, "ok", time.perf_counter() - due, len(scores), scores, scored.total_s)


def _count_wrong(scheduler: Scheduler, workload: Workload, samples: Sequence[Sample]) -> int:
    """Answers whose bits differ from those of each item scored alone, one at a time."""
    wrong = 0
    for sample in samples:
        whole = request_of(workload, sample.number)
        alone = []
        for i in range(len(whole.items)):
            one = dataclasses.replace(
                whole, items=whole.items[i : i + 1], labels=whole.labels[i : i + 1]
            )
            alone.append(scheduler.submit(one).future.result().result().scores[0])
        same = sample.code == "ok" and np.array_equal(alone, sample.scores)
        wrong += not same
    return wrong


def _summary_line(row: dict[str, Any]) -> str:
    latency = row.get("latency_ms", {"p50": float("nan"), "p99": float("nan")})
    times = f"p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms"
    return f"{row['items_per_s']:.5g} items/s, {times}"
