"""The commands `plan` and `bench simulate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from itemwise.cli.options import expand_options, fail, numbers
from itemwise.config import EngineConfig
from itemwise.routing import PolicyName

_Model = Annotated[
    str,
    typer.Argument(help="Name of a shape, such as qwen3-0.6b, folder of a checkpoint, or Hub id."),
]
_Device = Annotated[
    str | None,
    typer.Option("--device", help="h100, v5e, v5p, v6e or cpu.", show_default="none"),
]
_Cost = Annotated[
    Path | None,
    typer.Option("--cost", help="Measurement that `itemwise plan --measure --save` wrote."),
]


@dataclass(frozen=True)
class PlanLoad:
    """Options of a load."""

    query_tokens: Annotated[
        int, typer.Option("--query-tokens", help="Tokens of the query.", min=1)
    ] = 300
    num_items: Annotated[int, typer.Option("--items", help="Items of a request.", min=1)] = 10
    item_tokens: Annotated[
        int, typer.Option("--item-tokens", help="Tokens of each item.", min=1)
    ] = 20
    repeat_share: Annotated[
        float,
        typer.Option(
            "--repeat-share", help="Share of requests for a query that came before.", min=0, max=1
        ),
    ] = 0.0
    repeat_within_s: Annotated[
        float, typer.Option("--repeat-within", help="How long before, in seconds.", min=0.001)
    ] = 60.0


@expand_options
def plan(
    model: _Model,
    device: _Device = None,
    qps: Annotated[float, typer.Option("--qps", help="Requests per second.", min=0.001)] = 10.0,
    p99_ms: Annotated[
        float | None,
        typer.Option(
            "--p99-ms", help="Latency of 99 of 100 requests at most.", show_default="none", min=0.1
        ),
    ] = None,
    max_utilisation: Annotated[
        float,
        typer.Option("--max-utilisation", help="Share of what replicas can do.", min=0.01, max=1),
    ] = 0.7,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the time of steps on this machine.")
    ] = False,
    measure_s: Annotated[
        float, typer.Option("--measure-seconds", help="Seconds of that, about.", min=1, max=600)
    ] = 10.0,
    save: Annotated[
        Path | None, typer.Option("--save", help="File for the measurement, for --cost.")
    ] = None,
    cost: _Cost = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    *,
    load: PlanLoad,
    engine: EngineConfig,
) -> None:
    """Say how many chips a load takes, with which latency, and what that rests on.

    For example: itemwise plan qwen3-0.6b --device h100 --qps 500 --repeat-share 0.5
    """
    from itemwise.capacity.arrivals import Load
    from itemwise.capacity.plan import Goal
    from itemwise.capacity.report import find_site, measured_site, print_plan, write_site

    if measure == (device is not None or cost is not None):
        fail("give one of --device, --measure and --cost")
    offered = Load(qps, **vars(load))
    if measure:
        site = measured_site(model, engine, measure_s)
        if save is not None:
            write_site(site, save)
    else:
        site = find_site(model, device, offered, engine, cost)
    print_plan(site, offered, Goal(max_utilisation, p99_ms), as_json=as_json)


@expand_options
def simulate(
    model: _Model,
    device: _Device = None,
    cost: _Cost = None,
    rate: Annotated[
        float, typer.Option("--rate", help="Requests per second for each replica.", min=0.001)
    ] = 10.0,
    replicas: Annotated[
        str, typer.Option("--replicas", help="Numbers of replicas; comma-separated.")
    ] = "1,2,4,8,16",
    policies: Annotated[
        str,
        typer.Option("--routing", help="Comma-separated: random, two-choices, prefix."),
    ] = "random,two-choices,prefix",
    requests: Annotated[
        int,
        typer.Option("--requests", help="Requests of each replica, 500 in all at least.", min=1),
    ] = 100,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File to write all figures to.")
    ] = None,
    *,
    load: PlanLoad,
    engine: EngineConfig,
) -> None:
    """Simulate replicas behind a router: latency and hit rate, without a device.

    Scheduler, batcher and page cache are the real ones; only the time of steps is simulated.
    """
    from itemwise.capacity.arrivals import Load
    from itemwise.capacity.report import find_site, run_simulate

    names = policies.split(",")
    unknown = set(names) - {*get_args(PolicyName)}
    if unknown:
        fail(f"`--routing` has {', '.join(sorted(unknown))}, expected random, two-choices, prefix")
    offered = Load(rate, **vars(load))
    run_simulate(
        find_site(model, device, offered, engine, cost),
        offered,
        replicas=numbers(replicas, "replicas"),
        policies=[cast(PolicyName, name) for name in names],
        requests=requests,
        out_json=json_file,
    )
