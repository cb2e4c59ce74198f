"""Drawing with matplotlib: charts as SVG that takes its text colour from the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

INK = "#010203"  # stands for the page's own text colour
# Legible on white and on near-black.
BLUE, ORANGE, GREEN, RED = "#3b82f6", "#f08c2e", "#22a06b", "#e5484d"


def scatter(
    axes: Any,
    series: Sequence[tuple[str, Any, str, str, bool]],
    ours: Any,
    x_label: str,
    y_label: str,
) -> None:
    """Points of several series against `ours`, on a diagonal."""
    diagonal(axes)
    for label, reference, color, marker, filled in series:
        axes.scatter(
            log_odds(reference),
            log_odds(ours),
            s=34,
            marker=marker,
            facecolors=color if filled else "none",
            edgecolors=color,
            label=label,
            zorder=3,
        )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(frameon=False)


def diagonal(axes: Any) -> None:
    """The line of equal values."""
    axes.axline((0, 0), slope=1, color=INK, linewidth=0.8, alpha=0.6)


def log2_axis(axes: Any, counts: Sequence[int]) -> None:
    """An axis of numbers of items."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(counts), [str(n) for n in counts])
    axes.minorticks_off()
    axes.set_xlabel("items of a request, N")


def log_odds(scores: Any) -> list[float]:
    """Log-odds of all numbers of [items][labels], which spread out values near 0 and 1."""
    numbers = [min(max(float(score), 1e-9), 1 - 1e-9) for row in scores for score in row]
    return [math.log(number / (1 - number)) for number in numbers]


def draw_svg(name: str, draw: Callable[[Any], None], height: float = 3.1) -> str:
    """A transparent SVG of fixed width, with lines and text in `currentColor`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "svg.hashsalt": name,  # ids are the same in every run, and differ between charts
        "svg.fonttype": "path",
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.labelcolor": INK,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(4.6, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for start in ('id="', 'href="#', "url(#"):  # one page contains several charts
        text = text.replace(start, f"{start}{name}-")
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return head.replace("<svg", '<svg role="img" class="chart"', 1) + ">" + rest
