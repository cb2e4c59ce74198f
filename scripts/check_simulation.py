"""Compares the simulation of one replica with the engine of this machine under random arrivals.

    .venv/bin/python scripts/check_simulation.py --rate 10 --seconds 20

Measures the time of steps, offers requests at rising rates (`itemwise bench arrivals`), measures
the steps once more, and simulates the same arrivals with both. Run nothing else meanwhile: where
the two differ, the machine was not steady. Exits with 1 if p50 or p99 is off by over 20 % at a rate
that was answered within --p99-ms; beyond it queues only grow.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from itemwise.bench.serving.arrivals import run_arrivals
from itemwise.bench.serving.traffic import Workload
from itemwise.capacity.arrivals import replayed
from itemwise.capacity.report import measured_site
from itemwise.capacity.simulation import simulate
from itemwise.config import DEMO_MODEL, EngineConfig
from itemwise.routing import POLICIES

BOUND = 0.2


def main() -> bool:
    """Measures, simulates and prints; whether all are within the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEMO_MODEL)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--p99-ms", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    sites = [measured_site(options.model, EngineConfig(), options.seconds)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "arrivals.json"
        run_arrivals(
            options.model,
            rate=options.rate,
            p99_ms=options.p99_ms,
            seconds=options.seconds,
            workload={},
            check=0,
            out_json=out,
        )
        report = json.loads(out.read_text())
    sites.append(measured_site(options.model, EngineConfig(), options.seconds))
    workload, fine = Workload(**report["workload"]), True
    for run in report["runs"]:
        measured = [run["latency_ms"][name] for name in ("p50", "p99")]
        line = [f"{run['offered_per_s']:.4g}/s measured", *(f"{ms:.1f}" for ms in measured)]
        for site in sites:
            arrivals = replayed(workload, run["offered_per_s"], run["requests"])
            done = simulate(arrivals, 1, POLICIES["random"](0), site.engine, site.cost)
            found = done.latency_ms(50, 99)
            line += ["simulated", *(f"{ms:.1f}" for ms in found)]
            errors = [abs(a / b - 1) for a, b in zip(found, measured, strict=True)]
            fine &= measured[1] > options.p99_ms or max(errors) <= BOUND
        print(*line)
    return fine


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
