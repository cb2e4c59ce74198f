"""`itemwise calibrate`: a temperature and a label prior from labelled questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from itemwise.cli.options import DecisionProfile, expand_options, option
from itemwise.config import DEMO_MODEL, EngineConfig, SourceConfig

NOT_BETTER = 1  # exit status if nothing was written


@expand_options
def calibrate(
    file: Annotated[
        Path,
        typer.Argument(
            help="JSON lines: requests in System One's format with a field `answers`, see "
            "docs/calibration.md.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str, option("model-path", "Folder of a checkpoint, or its Hub id.", "model")
    ] = DEMO_MODEL,
    decision_profile: DecisionProfile = None,
    profile_out: Annotated[
        Path,
        typer.Option(
            "--profile-out",
            help="Decision profile to write, for `serve` to use. If it exists and "
            "--decision-profile is not given, questions are asked as it says.",
        ),
    ] = Path("decision_profile.json"),
    report: Annotated[
        Path, typer.Option("--report", help="HTML page to write, with reliability plots.")
    ] = Path("calibration.html"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File to write all figures to.")
    ] = None,
    *,
    source: SourceConfig,
    engine: EngineConfig,
) -> None:
    """Make the probabilities of decisions as sure as they are right.

    Asks the model labelled questions, fits a temperature and a label prior for each type of
    question to one half of the requests, and tests them on the other half. What makes the tested
    answers more likely goes into a decision profile.
    """
    from itemwise.calibration.run import Files, run_calibrate

    files = Files(file, decision_profile, profile_out, report, json_file)
    raise typer.Exit(0 if run_calibrate(model, files, source, engine) else NOT_BETTER)
