"""What `itemwise plan` and `itemwise bench simulate` print, and the files that they read."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from itemwise.bench.pictures import wide_console
from itemwise.capacity.arrivals import Load
from itemwise.capacity.devices import find_device
from itemwise.capacity.measure import engine_shape, measure
from itemwise.capacity.plan import Figure, Goal, Plan, Site, make_plan, site_of
from itemwise.capacity.replica import EngineShape
from itemwise.capacity.simulation import Arrival, SimulatedRun, simulate
from itemwise.capacity.step_cost import StepCost
from itemwise.checkpoint.locate import locate
from itemwise.checkpoint.read import read_config
from itemwise.checkpoint.shapes import NAMED_SHAPES, model_dict
from itemwise.config import EngineConfig
from itemwise.engine.memory import GIB
from itemwise.errors import ConfigError
from itemwise.machine import environment
from itemwise.models.config import ModelConfig
from itemwise.ops.step.arrays import StepShape
from itemwise.routing import POLICIES, PolicyName
from itemwise.scorer import Scorer

HERE = "this machine"


def model_config(model: str) -> ModelConfig:
    """The shape of a model: a name such as qwen3-0.6b, a checkpoint's folder, or its Hub id."""
    if model in NAMED_SHAPES:
        return ModelConfig.from_hf(model_dict(model))
    return read_config(locate(model))


def measured_site(model: str, config: EngineConfig, seconds: float) -> Site:
    """A model on this machine: starts its engine and measures the time of steps."""
    engine = Scorer.from_pretrained(model, **asdict(config)).engine
    info = engine.info()
    figures = (
        Figure("weights", info["weight_bytes"] / GIB, "GiB", "computed"),
        Figure("pages", engine.num_pages, "", "computed", "as the engine took them"),
        Figure("time of steps", HERE, "", "measured", f"in about {seconds:g} s, with this model"),
    )
    cost = measure(engine, seconds)
    return Site(model, HERE, config.tp_size, engine_shape(engine), cost, figures)


def write_site(site: Site, path: Path) -> None:
    """Keeps a measured site for `read_site`."""
    body = {
        **environment(),
        "model": site.model,
        "device": site.device,
        "tp": site.tp,
        "num_pages": site.engine.num_pages,
        "shapes": [asdict(shape) for shape in site.engine.shapes],
        "step_cost": asdict(site.cost),
        "figures": [asdict(figure) for figure in site.figures],
    }
    path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def read_site(path: Path) -> Site:
    """A site that `write_site` kept.

    Raises:
        ConfigError: the file is something else.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        shapes = tuple(StepShape(**shape) for shape in body["shapes"])
        return Site(
            body["model"],
            body["device"],
            body["tp"],
            EngineShape(shapes, body["num_pages"]),
            StepCost(**body["step_cost"]),
            tuple(Figure(**figure) for figure in body["figures"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"`{path}` is no measurement of `itemwise plan --measure --save`: {error}"
        ) from error


def find_site(
    model: str, device: str | None, load: Load, config: EngineConfig, cost: Path | None
) -> Site:
    """The site of a measurement in a file, or of a device by name."""
    if cost is not None:
        return read_site(cost)
    if device is None:
        raise ConfigError("give one of --device, --measure and --cost")
    return site_of(model, model_config(model), find_device(device), load, config)


def print_plan(site: Site, load: Load, goal: Goal, *, as_json: bool) -> Plan:
    """Makes a plan and prints it."""
    plan = make_plan(site, load, goal)
    if as_json:
        sys.stdout.write(json.dumps(plan.to_json(), indent=2) + "\n")
        return plan
    table = Table(title=f"{site.model} on {site.device}", title_justify="left")
    for name in ("", "figure", "source", "how"):
        table.add_column(name, justify="right" if name == "figure" else "left")
    for figure in (*site.figures, *plan.figures):
        table.add_row(figure.name, _shown(figure), figure.source, figure.note)
    console: Console = wide_console()
    console.print(table)
    console.print(
        f"{plan.replicas} replica(s) on {plan.chips} chip(s) for {load.rate:g} requests/s of "
        f"{load.query_tokens} + {load.num_items} x {load.item_tokens} tokens.",
        highlight=False,
    )
    return plan


def _shown(figure: Figure) -> str:
    if isinstance(figure.value, str):
        return figure.value
    whole = figure.value == int(figure.value)
    value = f"{figure.value:,.0f}" if whole or figure.value >= 1000 else f"{figure.value:.3g}"
    return f"{value} {figure.unit}".strip()


def run_simulate(
    site: Site,
    load: Load,
    *,
    replicas: Sequence[int],
    policies: Sequence[PolicyName],
    requests: int,
    out_json: Path | None,
) -> list[dict[str, Any]]:
    """Simulates a load per replica at several numbers of replicas and ways to route.

    Args:
        site: where the model runs.
        load: of one replica; it grows with their number.
        replicas: numbers of replicas.
        policies: ways to route.
        requests: of each replica, at least 500 in all.
        out_json: file for all figures.
    """
    rows = list[dict[str, Any]]()
    for count in replicas:
        grown = replace(load, rate=load.rate * count)
        arrivals = list(grown.arrivals(max(500, requests * count)))
        for policy in policies:
            run = simulate(arrivals, count, POLICIES[policy](0), site.engine, site.cost)
            rows.append(row_of(run, arrivals, count, policy))
            sys.stderr.write(f"simulated: {count} replicas, {policy}\n")
    _print_rows(rows)
    if out_json is not None:
        body = {
            "benchmark": "simulate",
            **environment(),
            "model": site.model,
            "device": site.device,
            "step_cost": asdict(site.cost),
            "load_per_replica": asdict(load),
            "runs": rows,
        }
        out_json.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    return rows


def row_of(
    run: SimulatedRun, arrivals: Sequence[Arrival], replicas: int, policy: str
) -> dict[str, Any]:
    """The figures of a run; latency without the first fifth, in which caches fill."""
    warm = arrivals[len(arrivals) // 5].at
    p50, p95, p99 = run.latency_ms(50, 95, 99, after_s=warm)
    return {
        "replicas": replicas,
        "policy": policy,
        "requests": len(arrivals),
        "hit_rate": run.hit_rate,
        "latency_ms": {"p50": p50, "p95": p95, "p99": p99},
        "items_per_s": run.items_per_s,
        "utilisation": sum(run.busy) / len(run.busy),
        "busiest": max(run.busy),
        "computed_tokens": run.computed_tokens,
        "evictions": run.evictions,
    }


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    table = Table()
    for name in ("replicas", "routing", "hit rate", "p50 ms", "p99 ms", "items/s", "busy", "most"):
        table.add_column(name, justify="left" if name == "routing" else "right")
    for row in rows:
        table.add_row(
            f"{row['replicas']}",
            row["policy"],
            f"{row['hit_rate']:.3f}",
            f"{row['latency_ms']['p50']:.1f}",
            f"{row['latency_ms']['p99']:.1f}",
            f"{row['items_per_s']:,.0f}",
            f"{row['utilisation']:.0%}",
            f"{row['busiest']:.0%}",
        )
    wide_console().print(table)
