"""Charts and tables of benchmarks."""

from __future__ import annotations

from typing import Any

from itemwise.errors import ConfigError

TABLE_COLUMNS = 120  # where no terminal says how wide it is


def wide_console() -> Any:
    """A console for tables, as wide as the terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=TABLE_COLUMNS)


def pyplot() -> Any:
    """Plotting functions of matplotlib, drawing to files.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("a chart needs matplotlib; pip install 'itemwise[validate]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt
