"""The report of a calibration: one self-contained HTML page with reliability plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from itemwise.calibration.measures import Bin, Measures
from itemwise.calibration.study import KindStudy, Study, View

# Sizes of a plot, in the units of its SVG.
SIDE = 200
LEFT, TOP = 44, 10
MAX_LISTED = 40  # labels of a type whose priors are listed
MEASURES = {
    "accuracy": "accuracy",
    "log_loss": "log loss (nats)",
    "brier": "Brier score (0 to 2)",
    "ece": "expected calibration error",
    "confidence": "mean confidence",
}


@dataclass(frozen=True)
class Point:
    """A bin on a plot, in the SVG's units, and its data as text."""

    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Plot:
    """A reliability plot.

    Attributes:
        title: what it shows, and the error.
        points: a point per bin.
        rows: the same as texts: confidence, accuracy, its interval, decisions.
    """

    title: str
    points: list[Point]
    rows: list[tuple[str, str, str, str]]


@dataclass(frozen=True)
class Section:
    """Tables and plots of one question type, or of all."""

    title: str
    note: str
    rows: list[tuple[str, str, str]]
    plots: tuple[Plot, Plot]
    prior: list[tuple[str, str]]


def page(study: Study, facts: Mapping[str, str]) -> str:
    """The HTML page.

    Args:
        study: what was fitted and tested.
        facts: what else is told: model, file, machine.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    sections = [_section(name, one) for name, one in study.kinds.items()]
    if len(sections) > 1:
        rows = _rows(study.before.measures, study.after.measures)
        plots = _plots(study.before, study.after)
        sections.insert(0, Section("All question types", "", rows, plots, []))
    return environment.get_template("calibration.html.j2").render(
        headline=headline(study),
        is_better=bool(study.calibrations()),
        sections=sections,
        facts=facts,
        side=SIDE,
        left=LEFT,
        top=TOP,
    )


def headline(study: Study) -> str:
    """The finding in one sentence."""
    before, after = study.before.measures, study.after.measures
    if not study.calibrations():
        return "Nothing was written: no calibration made the held-out answers more likely."
    return (
        f"Expected calibration error {before.ece:.3f} before and {after.ece:.3f} after, over "
        f"{before.count} answers that the fit has not seen; accuracy {before.accuracy:.3f} and "
        f"{after.accuracy:.3f}."
    )


def describe(one: KindStudy) -> str:
    """What was fitted for a question type, in a sentence or two."""
    calibration = one.calibration
    error = calibration.temperature_error
    text = f"Temperature {calibration.temperature:.3g}"
    if error is not None:
        text += f" (standard error {error:.2g})"
    elif calibration.at_bound:
        text += " (the limit of what a fit can have: check the labelled answers)"
    text += f", fitted to {one.num_fitted} answers and tested on {one.before.measures.count}."
    if not one.is_better:
        text += " Not used, since the tested answers are less likely with it."
    return text


def _section(name: str, one: KindStudy) -> Section:
    prior = sorted(one.calibration.log_prior, key=lambda pair: -abs(pair[1]))[:MAX_LISTED]
    return Section(
        f"Questions of type {name}",
        describe(one),
        _rows(one.before.measures, one.after.measures),
        _plots(one.before, one.after),
        [(label, f"{value:+.3f}") for label, value in prior],
    )


def _rows(before: Measures, after: Measures) -> list[tuple[str, str, str]]:
    return [
        (text, f"{getattr(before, name):.4f}", f"{getattr(after, name):.4f}")
        for name, text in MEASURES.items()
    ]


def _plots(before: View, after: View) -> tuple[Plot, Plot]:
    return _plot("Before", before), _plot("After", after)


def _plot(title: str, view: View) -> Plot:
    return Plot(
        f"{title}: expected calibration error {view.measures.ece:.3f}",
        [_point(bin) for bin in view.bins],
        [(f"{b.confidence:.3f}", f"{b.accuracy:.3f}", _range(b), str(b.count)) for b in view.bins],
    )


def _point(bin: Bin) -> Point:
    low, high = bin.interval
    text = f"confidence {bin.confidence:.3f}, accuracy {bin.accuracy:.3f}, {bin.count} answers"
    return Point(_x(bin.confidence), _y(bin.accuracy), _y(low), _y(high), text)


def _range(bin: Bin) -> str:
    low, high = bin.interval
    return f"{low:.3f} to {high:.3f}"


def _x(value: float) -> float:
    return round(LEFT + value * SIDE, 1)


def _y(value: float) -> float:
    return round(TOP + (1 - value) * SIDE, 1)
