"""The report of `itemwise tpu-compile`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from itemwise.checkpoint.read import read_config
from itemwise.checkpoint.shapes import NAMED_SHAPES, model_dict
from itemwise.models.config import ModelConfig
from itemwise.tpu.compile import Compiled, Report, compile_for_tpu
from itemwise.tpu.roofline import Workload

GIB = 1 << 30


def print_tpu_report(
    model: str,
    topology: str,
    *,
    tp_size: int,
    layers: int | None,
    forms: tuple[str, ...],
    workload: tuple[int, int, int],
    as_json: bool,
) -> bool:
    """Compiles, prints a table or JSON, and returns whether everything fits.

    Args:
        model: a name of `NAMED_SHAPES`, or a checkpoint's folder.
        topology: such as `v6e:1x1`.
        tp_size: chips that share the model.
        layers: how many to compile, None for all.
        forms: see `compile_for_tpu`.
        workload: tokens of the query, items, tokens of an item.
        as_json: print JSON.
    """
    if model in NAMED_SHAPES:
        config = ModelConfig.from_hf(model_dict(model))
    else:
        config = read_config(Path(model))

    def print_progress(what: str) -> None:
        sys.stderr.write(f"compiling: {what}\n")
        sys.stderr.flush()

    report = compile_for_tpu(
        config,
        model,
        topology,
        tp_size=tp_size,
        layers=layers,
        forms=forms,
        workload=Workload(*workload),
        on_progress=print_progress,
    )
    if as_json:
        sys.stdout.write(json.dumps(report.to_json(), indent=2) + "\n")
    else:
        _print(report)
    return report.fits


def _print(report: Report) -> None:
    chip = report.chip
    console = Console()
    title = f"{report.model} on {report.topology}, {report.tp_size} chip(s) per model"
    programs = Table(title=title, caption=f"{chip.name}: {chip.hbm_bytes / GIB:.0f} GiB per chip")
    for name in ("program", "HBM GiB", "temporaries GiB", "kernels", "compile time s", ""):
        programs.add_column(name, justify="left" if name in ("program", "") else "right")
    for one in report.programs:
        programs.add_row(*_program_row(one, chip.hbm_bytes))
    console.print(programs)
    workload = report.workload
    work = Table(
        title=f"query {workload.query_tokens}, {workload.num_items} items of "
        f"{workload.item_tokens}: at the roofline, per chip"
    )
    names = ("TFLOP", "attention TFLOP", "GB moved", "ms", "tokens/s", "items/s")
    for name in ("form", "runs", *names):
        work.add_column(name, justify="left" if name == "form" else "right")
    for form, one_work in report.work.items():
        work.add_row(
            form,
            str(one_work.runs),
            f"{one_work.flops / 1e12:.2f}",
            f"{one_work.attention_flops / 1e12:.2f}",
            f"{one_work.bytes / 1e9:.1f}",
            f"{one_work.seconds * 1e3:.2f}",
            f"{one_work.tokens_per_s:,.0f}",
            f"{one_work.items_per_s:,.0f}",
        )
    console.print(work)
    lines = [
        f"Weights {report.weight_bytes / GIB:.2f} GiB and {report.num_pages} pages of "
        f"{report.pool_bytes / GIB:.2f} GiB on each chip are included in every program.",
        "The roofline is the minimum time for arithmetic or memory traffic; a real run takes "
        "longer.",
    ]
    if report.compiled_layers < report.layers:
        lines.append(
            f"Compiled with {report.compiled_layers} of {report.layers} identical layers; the "
            "memory of the others is added."
        )
    lines.append("Fits." if report.fits else "Does not fit.")
    for line in lines:
        console.print(line, highlight=False)


def _program_row(one: Compiled, limit: int) -> tuple[str, ...]:
    if one.error is not None:
        return one.name, "-", "-", "-", f"{one.compile_s:.1f}", f"does not fit: {one.error}"
    verdict = "" if one.hbm_bytes <= limit else "does not fit"
    sizes = f"{one.hbm_bytes / GIB:.2f}", f"{one.temp_bytes / GIB:.3f}"
    return one.name, *sizes, str(one.kernels), f"{one.compile_s:.1f}", verdict
