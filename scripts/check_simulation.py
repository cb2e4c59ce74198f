#!/usr/bin/env python3
"""Compares the simulation of replicas with engines of this machine under random arrivals.

    .venv/bin/python scripts/check_simulation.py --replicas 1 2 --json check.json

The engines share the processor's cores, each in a process of its own on cores of its own. Requests
come at random times, most of them for a query that came before, and a router sends each to an
engine. The same arrivals run through the simulation, with the time of steps, and of what is around
them, as measured right before and right after. If the machine changed its speed meanwhile, the run
is repeated. Exits with 1 if the simulation is off by over 20 % in p50, p99 or the hit rate. Run
nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from itemwise.capacity.arrivals import Load
from itemwise.capacity.measure import PAUSE_S, measure
from itemwise.capacity.replica import EngineShape
from itemwise.capacity.simulation import Arrival, simulate
from itemwise.capacity.step_cost import StepCost
from itemwise.config import DEMO_MODEL
from itemwise.engine.scheduler import Job, QueueLimits, Scheduler
from itemwise.machine import environment
from itemwise.routing import POLICIES, query_key
from itemwise.scorer import Scorer

BOUND, STEADY = 0.2, 0.1
DRAIN_S = 300


def replica(pipe: Connection, model: str, cores: Sequence[int]) -> None:
    """An engine in its process. Takes orders, and says when each request was answered."""
    os.sched_setaffinity(0, cores)
    engine = Scorer.from_pretrained(model).engine
    # Not the platform, which cannot travel between processes.
    pipe.send(EngineShape(engine.shapes, engine.num_pages))
    saying = threading.Lock()

    def say(*words: Any) -> None:
        with saying:
            pipe.send(words)

    def answered(number: int, job: Job, _: object) -> None:
        error = job.future.exception()
        say(number, time.perf_counter(), 0 if error else job.work.cached_tokens, error)

    while order := pipe.recv():
        if order[0] == "measure":
            say(measure(engine, order[1]))
            continue
        arrivals: list[Arrival] = order[1]
        engine.forget_prefixes()
        scheduler = Scheduler(engine, QueueLimits(max_requests=len(arrivals) + 1))
        while (number := pipe.recv()) is not None:
            job = scheduler.submit(arrivals[number].request)
            job.future.add_done_callback(functools.partial(answered, number, job))
        scheduler.drain(DRAIN_S)


class Fleet:
    """Engines of this machine behind a router."""

    def __init__(self, model: str, count: int) -> None:
        cores = sorted(os.sched_getaffinity(0))
        share = len(cores) // count
        if not share:
            raise SystemExit(f"{count} engines need as many cores, found {len(cores)}")
        context, self.pipes = multiprocessing.get_context("spawn"), list[Connection]()
        for place in range(count):
            mine, theirs = context.Pipe()
            own = cores[place * share : (place + 1) * share]
            context.Process(target=replica, args=(theirs, model, own), daemon=True).start()
            self.pipes.append(mine)
        self.shape: EngineShape = [pipe.recv() for pipe in self.pipes][0]

    def measure(self, seconds: float) -> StepCost:
        """The cost of steps, and of a request beside them: router, pipe, threads that wake up.

        All engines measure at the same time, and the first one's steps count. The rest is what the
        simulation lacks in requests that come one at a time.
        """
        for pipe in self.pipes:
            pipe.send(("measure", seconds))
        cost: StepCost = [pipe.recv()[0] for pipe in self.pipes][0]
        request = next(Load(1.0, 300, 10, 20).arrivals(1)).request
        alone = [Arrival(number * PAUSE_S, request) for number in range(20)]
        answers = simulate(alone, 1, POLICIES["prefix"](0), self.shape, cost).answers
        pairs = zip(self.seconds(alone, "prefix")[0], answers, strict=True)
        rest = statistics.median(seconds - answer.seconds for seconds, answer in pairs)
        return replace(cost, overhead_s=max(0.0, rest))

    def run(self, arrivals: Sequence[Arrival], routing: str) -> dict[str, float]:
        """What clients see."""
        seconds, cached = self.seconds(arrivals, routing)
        query_tokens = sum(len(arrival.request.query) for arrival in arrivals)
        p50, p99 = 1e3 * np.percentile(seconds, (50, 99))
        return {"p50_ms": p50, "p99_ms": p99, "hit_rate": sum(cached) / query_tokens}

    def seconds(self, arrivals: Sequence[Arrival], routing: str) -> tuple[list[float], list[int]]:
        """Sends arrivals at their times: seconds from when each was due, and its known tokens."""
        policy, names = POLICIES[routing](0), [f"replica-{n}" for n in range(len(self.pipes))]
        under_way = [0] * len(names)
        seconds, cached = [0.0] * len(arrivals), [0] * len(arrivals)
        for pipe in self.pipes:
            pipe.send(("run", arrivals))
        started = time.perf_counter() + 1

        def collect(until: float) -> None:
            """Takes answers until a time, or until all are there."""
            while sum(under_way) or until < float("inf"):
                left = until - time.perf_counter()
                if left <= 0:
                    return
                for pipe in wait(self.pipes, min(left, DRAIN_S)):
                    number, ended, known, error = pipe.recv()
                    if error:
                        raise error
                    seconds[number], cached[number] = ended - started - arrivals[number].at, known
                    under_way[self.pipes.index(pipe)] -= 1

        for number, arrival in enumerate(arrivals):
            collect(started + arrival.at)
            place = policy.choose(query_key(arrival.request.query), names, under_way)
            under_way[place] += 1
            self.pipes[place].send(number)
        collect(float("inf"))
        for pipe in self.pipes:
            pipe.send(None)
        return seconds, cached

    def stop(self) -> None:
        """Ends all processes."""
        for pipe in self.pipes:
            pipe.send(None)


def compare(fleet: Fleet, load: Load, options: argparse.Namespace) -> dict[str, Any]:
    """One rate, measured between two measurements of steps, and simulated with both."""
    arrivals = list(load.arrivals(round(load.rate * options.seconds)))
    attempts, steady = 0, False
    while attempts < options.tries and not steady:
        attempts += 1
        costs = [fleet.measure(options.measure_seconds)]
        measured = fleet.run(arrivals, options.routing)
        costs.append(fleet.measure(options.measure_seconds))
        simulated = []
        for cost in costs:
            policy = POLICIES[options.routing](0)
            done = simulate(arrivals, len(fleet.pipes), policy, fleet.shape, cost)
            p50, p99 = done.latency_ms(50, 99)
            simulated.append({"p50_ms": p50, "p99_ms": p99, "hit_rate": done.hit_rate})
        steady = abs(simulated[0]["p50_ms"] / simulated[1]["p50_ms"] - 1) <= STEADY
    mean = {name: (simulated[0][name] + simulated[1][name]) / 2 for name in measured}
    row = {
        "replicas": len(fleet.pipes),
        "requests_per_s": load.rate,
        "requests": len(arrivals),
        "attempts": attempts,
        "steady": steady,
        "measured": measured,
        "simulated": mean,
        "off_by": {name: mean[name] / measured[name] - 1 for name in measured},
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> bool:
    """Measures, simulates and prints; whether all are within the bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=DEMO_MODEL)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[5.0, 10.0, 20.0, 30.0])
    parser.add_argument("--routing", choices=sorted(POLICIES), default="prefix")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run (20)")
    parser.add_argument("--measure-seconds", type=float, default=6.0, help="of steps (6)")
    parser.add_argument("--tries", type=int, default=3, help="if the speed changes meanwhile (3)")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    options = parser.parse_args()
    rows = []
    for count in options.replicas:
        fleet = Fleet(options.model, count)
        for rate in options.rates:
            load = Load(rate, 300, 10, 20, repeat_share=0.6, repeat_within_s=20.0)
            rows.append(compare(fleet, load, options))
        fleet.stop()
    if options.json:
        report = {"benchmark": "check-simulation", **environment(), "model": options.model}
        report |= {"routing": options.routing, "seconds": options.seconds, "runs": rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return all(abs(off) <= BOUND for row in rows for off in row["off_by"].values())


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
