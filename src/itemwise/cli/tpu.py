"""The command `tpu-compile`."""

from __future__ import annotations

import sys
from dataclasses import astuple
from typing import Annotated, Literal

import typer

from itemwise.cli.options import WorkloadOptions, expand_options
from itemwise.config import prepare_tpu_compiler


@expand_options
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
        typer.Option("--mask", help="Packed programs to compile in addition to the exact step."),
    ] = "both",
    layers: Annotated[
        int | None,
        typer.Option(
            "--layers",
            help="Compile only this many layers, which is faster. All layers are alike; the "
            "memory of the others is added.",
            show_default="all",
            min=1,
        ),
    ] = None,
    *,
    workload: WorkloadOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compile the serving programs for a TPU, without one, and report what they need.

    Needs libtpu (the `tpu` extra), which includes the compiler, but neither a TPU nor weights.
    Exits with status 1 if a program does not fit the chip.
    """
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
        workload=astuple(workload),
        as_json=as_json,
    )
    sys.exit(0 if fits else 1)
