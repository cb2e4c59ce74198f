"""Commands about the compiled programs: benchmarks of them, and compiling for a TPU."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from itemwise.cli.options import EngineOptions, LoadOptions, expand_options
from itemwise.types import Algorithm


def _bench_option(flag: str, envvar: str, text: str, **settings: Any) -> Any:
    return typer.Option(f"--{flag}", envvar=envvar, help=text, **settings)


_Mask = Annotated[
    Literal["auto", "dense", "segment"],
    _bench_option(
        "mask", "MULTI_ITEM_MASK_IMPL", "How packed tells items apart; prefill-extend needs none."
    ),
]
_WarmupRuns = Annotated[
    int,
    _bench_option(
        "warmup-runs",
        "MULTI_ITEM_BENCH_WARMUP_RUNS",
        "Runs that are not timed; the first compiles.",
        min=0,
    ),
]
_TimedRuns = Annotated[
    int,
    _bench_option(
        "timed-runs", "MULTI_ITEM_BENCH_TIMED_RUNS", "Runs whose median is reported.", min=1
    ),
]


@dataclass(frozen=True)
class WorkloadOptions:
    """The workload of the A/B benchmarks."""

    query_tokens: Annotated[
        int, typer.Option("--query-tokens", help="Tokens of the query.", min=1)
    ] = 2000
    num_items: Annotated[int, typer.Option("--items", help="Items.", min=1)] = 500
    item_tokens: Annotated[
        int, typer.Option("--item-tokens", help="Tokens of each item.", min=1)
    ] = 20


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _run_ab(
    model: str,
    algorithm: Algorithm,
    workload: WorkloadOptions,
    engine: EngineOptions,
    **settings: Any,
) -> None:
    from itemwise.bench.compare.ab import run_ab

    chosen = engine.settings()
    for name in ("multi_item_algorithm", "multi_item_mask_impl"):
        del chosen[name]  # the command's own
    run_ab(model, algorithm, **dataclasses.asdict(workload), **settings, **chosen)


def add_bench_commands(app: typer.Typer) -> None:
    """Adds `compare`, `arrivals`, `packed` and `prefill-extend`."""

    @app.command("compare")
    @expand_options
    def bench_compare(
        model: Annotated[str, typer.Argument(help="Folder of a checkpoint, or its Hub id.")],
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
        ] = "itemwise,torch-serial,torch-padded,torch-expanded,torch-packed,torch-flex,"
        "torch-cascade",
        rounds: Annotated[
            int, typer.Option("--rounds", help="Turns of each way that count.", min=1)
        ] = 3,
        warmup: Annotated[
            int, typer.Option("--warmup", help="Turns of each way before.", min=0)
        ] = 1,
        max_items: Annotated[
            int | None,
            typer.Option(
                "--max-items", help="Most items of a workload.", show_default="all", min=1
            ),
        ] = None,
        json_file: Annotated[
            Path | None, typer.Option("--json", help="File to write all figures to.")
        ] = None,
        chart: Annotated[
            Path | None,
            typer.Option("--chart", help="Image of items per second; needs matplotlib."),
        ] = None,
        *,
        engine: EngineOptions,
    ) -> None:
        """Items per second and memory beside every way of PyTorch, taking turns in one run.

        Needs the `validate` extra for the ways of PyTorch.
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
            **engine.settings(),
        )

    @app.command("arrivals")
    @expand_options
    def bench_arrivals(
        model: Annotated[str, typer.Argument(help="Folder of a checkpoint, or its Hub id.")],
        rate: Annotated[
            float, typer.Option("--rate", help="Requests a second at first; 1.3x each time.")
        ] = 10.0,
        p99_ms: Annotated[
            float, typer.Option("--p99-ms", help="Bound of the 99th percentile of latency.")
        ] = 500.0,
        seconds: Annotated[
            float, typer.Option("--seconds", help="How long each rate is offered.")
        ] = 20.0,
        check: Annotated[
            int,
            typer.Option(
                "--check",
                help="Answers of each rate whose bits are compared with each item scored alone.",
                min=0,
            ),
        ] = 3,
        json_file: Annotated[
            Path | None, typer.Option("--json", help="File to write all figures to.")
        ] = None,
        *,
        load: LoadOptions,
        engine: EngineOptions,
    ) -> None:
        """The highest rate of random arrivals that is answered in time, without HTTP.

        Requests go to the scheduler in this process, at rising rates, until the 99th percentile of
        their latency passes the bound. For a running server: `itemwise bench serve --rates`.
        """
        from itemwise.bench.serving.arrivals import run_arrivals

        fine = run_arrivals(
            model,
            rate=rate,
            p99_ms=p99_ms,
            seconds=seconds,
            workload=dataclasses.asdict(load),
            check=check,
            out_json=json_file,
            **engine.settings(),
        )
        raise typer.Exit(0 if fine else 1)

    @app.command("packed")
    @expand_options
    def bench_packed(
        model: Annotated[str, typer.Argument(help="Folder of a checkpoint, or its Hub id.")],
        mask: _Mask = "auto",
        warmup_runs: _WarmupRuns = 1,
        timed_runs: _TimedRuns = 3,
        json_file: Annotated[
            Path | None, typer.Option("--json", help="File to write all figures to.")
        ] = None,
        *,
        workload: WorkloadOptions,
        engine: EngineOptions,
    ) -> None:
        """Items per second of the packed algorithm: query and items in one sequence.

        Compare --mask dense with --mask segment and with `itemwise bench prefill-extend`.
        """
        runs = {"warmup_runs": warmup_runs, "timed_runs": timed_runs, "out_json": json_file}
        _run_ab(model, "packed", workload, engine, mask=mask, **runs)

    @app.command("prefill-extend")
    @expand_options
    def bench_prefill_extend(
        model: Annotated[str, typer.Argument(help="Folder of a checkpoint, or its Hub id.")],
        mask: _Mask = "auto",
        warmup_runs: _WarmupRuns = 1,
        timed_runs: _TimedRuns = 3,
        json_file: Annotated[
            Path | None, typer.Option("--json", help="File to write all figures to.")
        ] = None,
        *,
        workload: WorkloadOptions,
        engine: EngineOptions,
    ) -> None:
        """Items per second of the default algorithm: the query once, items against its pages.

        It tells items apart by their rows, so the mask changes nothing; the option is there for
        scripts that set it for both benchmarks.
        """
        runs = {"warmup_runs": warmup_runs, "timed_runs": timed_runs, "out_json": json_file}
        _run_ab(model, "prefill_extend", workload, engine, mask=mask, **runs)


def add_tpu_command(app: typer.Typer) -> None:
    """Adds `tpu-compile`."""

    @app.command("tpu-compile")
    def tpu_compile(
        model: Annotated[
            str,
            typer.Argument(help="Name of a shape, such as qwen3-0.6b, or folder of a checkpoint."),
        ],
        topology: Annotated[
            str,
            typer.Option("--topology", help="Chips, such as v5e:2x2, v6e:1x1, v6e:2x2, v6e:2x4."),
        ] = "v6e:1x1",
        tp_size: Annotated[
            int, typer.Option("--tp-size", "--tp", help="Chips that share the model.", min=1)
        ] = 1,
        mask: Annotated[
            Literal["both", "dense", "segment", "none"],
            typer.Option("--mask", help="Packed programs to compile beside the exact step."),
        ] = "both",
        layers: Annotated[
            int | None,
            typer.Option(
                "--layers",
                help="Compile only so many layers, in less time. Layers are alike; the memory of "
                "the others is added.",
                show_default="all",
                min=1,
            ),
        ] = None,
        query_tokens: Annotated[
            int, typer.Option("--query-tokens", help="Tokens of the query.", min=1)
        ] = 2000,
        num_items: Annotated[int, typer.Option("--items", help="Items.", min=1)] = 500,
        item_tokens: Annotated[
            int, typer.Option("--item-tokens", help="Tokens of each item.", min=1)
        ] = 20,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
    ) -> None:
        """Compile the serving programs for a TPU that is not there, and say what they need.

        Needs libtpu, which holds the compiler (the `tpu` extra), and neither a TPU nor weights.
        Exits with status 1 where a program does not fit the chip.
        """
        from itemwise.config import prepare_tpu_compiler

        prepare_tpu_compiler()  # before JAX is imported
        from itemwise.tpu.report import print_tpu_report

        masks = {"both": ("dense", "segment"), "none": (), "dense": ("dense",)}
        forms = (
            *(f"packed {one}" for one in masks.get(mask, (mask,))),
            "exact step",
            "labels",
            "vocabulary",
        )
        fits = print_tpu_report(
            model,
            topology,
            tp_size=tp_size,
            layers=layers,
            forms=forms,
            workload=(query_tokens, num_items, item_tokens),
            as_json=as_json,
        )
        sys.exit(0 if fits else 1)
