"""The command `itemwise calibrate`, from the labelled set to the files that it writes."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from itemwise.bench.pictures import wide_console
from itemwise.calibration.calibrate import read_examples, to_json, to_profile
from itemwise.calibration.labelled import read_labelled
from itemwise.calibration.report import page
from itemwise.calibration.study import Study, View, study
from itemwise.checkpoint.locate import locate
from itemwise.config import EngineConfig, SourceConfig
from itemwise.machine import environment
from itemwise.progress import progress, say
from itemwise.request.decide.profile_file import PROFILE_FILE, write_calibration
from itemwise.scorer import Scorer
from itemwise.validation.files import write_json, write_text


@dataclass(frozen=True)
class Files:
    """What is read and written.

    Attributes:
        labelled: JSON lines of labelled requests.
        profile: how questions are asked; None for `profile_out` if that exists, else for the
            checkpoint's own.
        profile_out: decision profile to write.
        report: HTML page to write.
        figures: JSON to write; None for none.
    """

    labelled: Path
    profile: Path | None
    profile_out: Path
    report: Path
    figures: Path | None


def run_calibrate(model: str, files: Files, source: SourceConfig, engine: EngineConfig) -> bool:
    """Calibrates a model, prints a table and writes the files.

    Returns:
        Whether a decision profile was written: whether any calibration was better than none.

    Raises:
        LabelledSetError: the labelled set is unreadable, cannot be asked, or says too little.
        ItemwiseError: the model cannot be used, or a file cannot be written.
    """
    requests = read_labelled(files.labelled)
    used = files.profile or (files.profile_out if files.profile_out.exists() else None)
    with progress() as on_progress:
        scorer = Scorer.from_pretrained(
            model,
            decision_profile=used,
            on_progress=on_progress,
            **asdict(source),
            **asdict(engine),
        )
        examples = read_examples(scorer, requests, on_progress)
    found = study(examples)
    profile = scorer.decision_profile()
    facts = {
        "benchmark": "calibrate",
        **environment(),
        "model": model,
        "labelled_set": files.labelled.name,
        "requests": len(requests),
        "decision_profile": {"name": profile.name, "why": profile.why},
    }
    _print_table(found)
    write_text(files.report, page(found, _told(facts)))
    say(f"Wrote {files.report}")
    if files.figures is not None:
        write_json(files.figures, {**facts, **to_json(found)})
    if not found.calibrations():
        say("Wrote no decision profile, since nothing made the tested answers more likely")
        return False
    if used is None:
        own = locate(model, revision=source.revision, download_dir=source.download_dir)
        used = own / PROFILE_FILE
    if used.exists() and used.resolve() != files.profile_out.resolve():
        shutil.copyfile(used, files.profile_out)  # its wording stays with what was fitted to it
    write_calibration(files.profile_out, to_profile(found, examples, profile.calibration))
    command = ["itemwise", "serve", "--model-path", model, "--decision-profile"]
    say(f"Wrote {files.profile_out}; to use it:")
    say("  " + shlex.join([*command, str(files.profile_out)]))
    return True


def _told(facts: dict[str, Any]) -> dict[str, str]:
    """What the report tells beside the figures."""
    machine, profile = facts["machine"], facts["decision_profile"]
    return {
        "model": facts["model"],
        "labelled set": f"{facts['labelled_set']}, {facts['requests']} requests",
        "decision profile": f"{profile['name']}: {profile['why']}",
        "date": facts["date"],
        "machine": f"{machine['cpu']}, {machine['cores']} cores",
        "versions": ", ".join(f"{name} {each}" for name, each in facts["versions"].items()),
        "commit": str(facts["git_commit"]),
    }


def _print_table(found: Study) -> None:
    from rich.table import Table

    table = Table(title="Answers that the fit has not seen, before -> after", title_justify="left")
    table.add_column("type")
    for name in ("answers", "temperature", "accuracy", "log loss", "Brier", "calibration error"):
        table.add_column(name, justify="right")
    for row in _rows(found):
        table.add_row(*row)
    wide_console().print(table)


def _rows(found: Study) -> Iterator[tuple[str, ...]]:
    for kind, one in found.kinds.items():
        used = f"{one.calibration.temperature:.3g}" if one.is_better else "not used"
        yield (kind, str(one.before.measures.count), used, *_cells(one.before, one.after))
    if len(found.kinds) > 1:
        count = str(found.before.measures.count)
        yield ("all", count, "", *_cells(found.before, found.after))


def _cells(before: View, after: View) -> Iterator[str]:
    for name in ("accuracy", "log_loss", "brier", "ece"):
        old, new = getattr(before.measures, name), getattr(after.measures, name)
        yield f"{old:.3f} -> {new:.3f}"
