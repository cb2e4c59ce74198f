"""Charts and tables of benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from itemwise.errors import ConfigError

TABLE_COLUMNS = 120  # used if there is no terminal


def wide_console() -> Any:
    """A console for tables, as wide as the terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=TABLE_COLUMNS)


def print_runs(rows: Sequence[dict[str, Any]]) -> None:
    """Prints a table of loads: `Run.summary()` of each, `checked` answers and `wrong` ones."""
    from rich.table import Table

    table = Table()
    for name in ("load", "requests", "req/s", "items/s", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(name, justify="right")
    table.add_column("overhead p50 ms", justify="right")
    table.add_column("answers")
    table.add_column("bits")
    for row in rows:
        offered, latency = row["offered_per_s"], row.get("latency_ms", {})
        table.add_row(
            f"{row['clients']} cl." if offered is None else f"{offered:.4g}/s",
            str(row["requests"]),
            f"{row['achieved_per_s']:.1f}",
            f"{row['items_per_s']:.1f}",
            *(f"{latency[p]:.1f}" if latency else "" for p in ("p50", "p95", "p99")),
            f"{row['overhead_ms']['p50']:.2f}" if latency else "",
            ", ".join(f"{code} {count}" for code, count in sorted(row["codes"].items())),
            f"{row['checked'] - row['wrong']}/{row['checked']} same" if row["checked"] else "-",
        )
    wide_console().print(table)


def pyplot() -> Any:
    """Plotting functions of matplotlib, drawing to files.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            "a chart needs matplotlib; pip install '.[validate]' in Itemwise's folder"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt
