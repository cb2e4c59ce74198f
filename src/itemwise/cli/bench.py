"""The commands of `itemwise bench`: speed and memory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from itemwise.cli.options import LoadOptions, WorkloadOptions, expand_options, numbers
from itemwise.config import EngineConfig, MaskSetting
from itemwise.types import Algorithm

bench_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Measure speed and memory."
)

_Number = TypeVar("_Number", int, float)
_Model = Annotated[str, typer.Argument(help="Folder of a checkpoint, or its Hub id.")]
_Url = Annotated[str, typer.Option("--url", help="A running server on this machine.")]
_JsonFile = Annotated[Path | None, typer.Option("--json", help="File to write all figures to.")]


def _bench_option(flag: str, envvar: str, text: str, **settings: Any) -> Any:
    """An option with the environment variable that runbooks of this benchmark use."""
    return typer.Option(f"--{flag}", envvar=envvar, help=text, **settings)


_Mask = Annotated[
    MaskSetting,
    _bench_option(
        "mask",
        "MULTI_ITEM_MASK_IMPL",
        "Attention mask of the packed algorithm; prefill-extend needs none.",
    ),
]
_WarmupRuns = Annotated[
    int,
    _bench_option(
        "warmup-runs",
        "MULTI_ITEM_BENCH_WARMUP_RUNS",
        "Runs before the timed ones; the first compiles.",
        min=0,
    ),
]
_TimedRuns = Annotated[
    int,
    _bench_option(
        "timed-runs", "MULTI_ITEM_BENCH_TIMED_RUNS", "Timed runs; their median is reported.", min=1
    ),
]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _run_ab(
    model: str,
    algorithm: Algorithm,
    workload: WorkloadOptions,
    engine: EngineConfig,
    **settings: Any,
) -> None:
    from itemwise.bench.compare.ab import run_ab

    chosen = asdict(engine)
    for name in ("multi_item_algorithm", "multi_item_mask_impl"):
        del chosen[name]  # options of the command itself
    run_ab(model, algorithm, **asdict(workload), **settings, **chosen)


@bench_app.command("serve")
@expand_options
def bench_serve(
    load: LoadOptions,
    url: _Url = "http://127.0.0.1:30000",
    clients: Annotated[
        str,
        typer.Option(
            "--clients",
            help="Numbers of concurrent clients, each waiting for its answer before the next "
            "request; comma-separated, empty for none.",
        ),
    ] = "1,4,16,64",
    rates: Annotated[
        str,
        typer.Option(
            "--rates",
            help="Requests per second sent at random times (Poisson) without waiting for "
            "answers; comma-separated.",
        ),
    ] = "",
    seconds: Annotated[float, typer.Option("--seconds", help="Maximum time of each load.")] = 20.0,
    max_requests: Annotated[
        int, typer.Option("--max-requests", help="Maximum requests of each load.")
    ] = 2000,
    check: Annotated[
        int,
        typer.Option(
            "--check",
            help="Answers of each load whose bits are compared with each item scored alone; "
            "takes one request per item.",
        ),
    ] = 20,
    json_file: _JsonFile = None,
    chart: Annotated[
        Path | None,
        typer.Option("--chart", help="Image of latency and throughput; needs matplotlib."),
    ] = None,
) -> None:
    """Measure throughput and latency of a running server under load, and check bits."""
    from itemwise.bench.serving.serve import run_serve

    fine = run_serve(
        url,
        clients=numbers(clients, "clients") if clients else (),
        rates=numbers(rates, "rates", float) if rates else (),
        seconds=seconds,
        max_requests=max_requests,
        workload=asdict(load),
        check=check,
        out_json=json_file,
        chart=chart,
    )
    raise typer.Exit(0 if fine else 1)


@bench_app.command("soak")
@expand_options
def bench_soak(
    load: LoadOptions,
    url: _Url = "http://127.0.0.1:30000",
    seconds: Annotated[float, typer.Option("--seconds", help="Duration.", max=3600)] = 600.0,
    share: Annotated[
        float,
        typer.Option(
            "--load", help="Load as a share of the throughput of 16 clients.", min=0.01, max=2
        ),
    ] = 0.8,
    json_file: _JsonFile = None,
) -> None:
    """Run a long mixed load with disconnecting clients, bad requests and deadlines, then check."""
    from itemwise.bench.serving.soak import run_soak

    fine = run_soak(url, seconds=seconds, load=share, workload=asdict(load), out_json=json_file)
    raise typer.Exit(0 if fine else 1)


@bench_app.command("attack")
def bench_attack(
    url: _Url = "http://127.0.0.1:30000",
    seconds: Annotated[float, typer.Option("--seconds", help="Duration.", max=3600)] = 120.0,
    without: Annotated[
        str, typer.Option("--without", help="Comma-separated names of attacks to leave out.")
    ] = "",
    json_file: _JsonFile = None,
) -> None:
    """Try to stop a server of your own, and measure what small requests and probes see."""
    from itemwise.bench.serving.attack import run_attack

    names = tuple(name for name in without.split(",") if name)
    fine = run_attack(url, seconds=seconds, without=names, out_json=json_file)
    raise typer.Exit(0 if fine else 1)


@bench_app.command("compare")
@expand_options
def bench_compare(
    model: _Model,
    workloads: Annotated[
        str,
        typer.Option(
            "--workloads",
            help="Comma-separated: contract (query 2000, 500 items of 20), contract-64, "
            "contract-2000, short (16 queries of 300, 10 items each), runbook-1, -8, -32, -64, "
            "-128 (query 4, items of 5 to 6), long (query 4000, 50 items of 400), mixed.",
        ),
    ] = "contract",
    ways: Annotated[
        str,
        typer.Option(
            "--ways",
            help="Comma-separated: itemwise, itemwise-dense, itemwise-segment (the packed "
            "algorithm); torch-serial, -padded, -expanded, -packed, -flex, -cascade.",
        ),
    ] = "itemwise,torch-serial,torch-padded,torch-expanded,torch-packed,torch-flex,torch-cascade",
    rounds: Annotated[int, typer.Option("--rounds", help="Timed turns of each method.", min=1)] = 3,
    warmup: Annotated[
        int, typer.Option("--warmup", help="Warm-up turns of each method.", min=0)
    ] = 1,
    max_items: Annotated[
        int | None,
        typer.Option("--max-items", help="Maximum items of a workload.", show_default="all", min=1),
    ] = None,
    json_file: _JsonFile = None,
    chart: Annotated[
        Path | None,
        typer.Option("--chart", help="Image of items per second; needs matplotlib."),
    ] = None,
    *,
    engine: EngineConfig,
) -> None:
    """Compare items per second and memory with every PyTorch method, in turns in one run.

    The PyTorch methods need the `validate` extra.
    """
    from itemwise.bench.compare.compare import run_compare

    run_compare(
        model,
        workloads=_names(workloads),
        ways=_names(ways),
        rounds=rounds,
        warmup=warmup,
        max_items=max_items,
        out_json=json_file,
        chart=chart,
        **asdict(engine),
    )


@bench_app.command("decisions")
@expand_options
def bench_decisions(
    model: _Model,
    state_tokens: Annotated[
        str, typer.Option("--state-tokens", help="Lengths of the state, comma-separated.")
    ] = "300,2000",
    questions: Annotated[
        str, typer.Option("--questions", help="Numbers of questions, comma-separated.")
    ] = "1,8,64,255",
    ways: Annotated[
        str,
        typer.Option(
            "--ways",
            help="Comma-separated, beside Itemwise; empty for none: torch-serial, -padded, "
            "-expanded, -packed, -flex, -cascade. They need the `validate` extra.",
        ),
    ] = "torch-serial,torch-expanded",
    rounds: Annotated[int, typer.Option("--rounds", help="Timed turns of each method.", min=1)] = 3,
    most_alone: Annotated[
        int,
        typer.Option(
            "--most-alone",
            help="Most questions to ask one by one, where each computes the state again; their "
            "time stands for all.",
            min=1,
        ),
    ] = 16,
    json_file: _JsonFile = None,
    *,
    engine: EngineConfig,
) -> None:
    """Measure what many questions about one state cost: together, one by one, with PyTorch."""
    from itemwise.bench.compare.decisions import run_decisions

    fine = run_decisions(
        model,
        state_tokens=numbers(state_tokens, "state-tokens"),
        questions=numbers(questions, "questions"),
        ways=_names(ways),
        rounds=rounds,
        most_alone=most_alone,
        out_json=json_file,
        **asdict(engine),
    )
    raise typer.Exit(0 if fine else 1)


@bench_app.command("arrivals")
@expand_options
def bench_arrivals(
    model: _Model,
    rate: Annotated[
        float,
        typer.Option(
            "--rate", help="First rate in requests per second; each next one is 1.3 times as high."
        ),
    ] = 10.0,
    p99_ms: Annotated[
        float, typer.Option("--p99-ms", help="Limit on the 99th percentile of latency.")
    ] = 500.0,
    seconds: Annotated[float, typer.Option("--seconds", help="Duration of each rate.")] = 20.0,
    check: Annotated[
        int,
        typer.Option(
            "--check",
            help="Answers of each rate whose bits are compared with each item scored alone.",
            min=0,
        ),
    ] = 3,
    json_file: _JsonFile = None,
    *,
    load: LoadOptions,
    engine: EngineConfig,
) -> None:
    """Find the highest rate of random arrivals that is answered in time, without HTTP.

    Requests go to the scheduler in this process, at rising rates, until the 99th percentile of
    their latency exceeds the limit. For a running server: `itemwise bench serve --rates`.
    """
    from itemwise.bench.serving.arrivals import run_arrivals

    fine = run_arrivals(
        model,
        rate=rate,
        p99_ms=p99_ms,
        seconds=seconds,
        workload=asdict(load),
        check=check,
        out_json=json_file,
        **asdict(engine),
    )
    raise typer.Exit(0 if fine else 1)


@bench_app.command("packed")
@expand_options
def bench_packed(
    model: _Model,
    mask: _Mask = "auto",
    warmup_runs: _WarmupRuns = 1,
    timed_runs: _TimedRuns = 3,
    json_file: _JsonFile = None,
    *,
    workload: WorkloadOptions,
    engine: EngineConfig,
) -> None:
    """Measure items per second of the packed algorithm: query and items in one sequence.

    Compare --mask dense with --mask segment and with `itemwise bench prefill-extend`.
    """
    runs = {"warmup_runs": warmup_runs, "timed_runs": timed_runs, "out_json": json_file}
    _run_ab(model, "packed", workload, engine, mask=mask, **runs)


@bench_app.command("prefill-extend")
@expand_options
def bench_prefill_extend(
    model: _Model,
    mask: _Mask = "auto",
    warmup_runs: _WarmupRuns = 1,
    timed_runs: _TimedRuns = 3,
    json_file: _JsonFile = None,
    *,
    workload: WorkloadOptions,
    engine: EngineConfig,
) -> None:
    """Measure items per second of the default algorithm: the query once, items against its pages.

    Items are in separate rows, so the mask changes nothing; the option exists for scripts that set
    it for both benchmarks.
    """
    runs = {"warmup_runs": warmup_runs, "timed_runs": timed_runs, "out_json": json_file}
    _run_ab(model, "prefill_extend", workload, engine, mask=mask, **runs)
