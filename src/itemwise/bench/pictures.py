"""Charts of benchmarks."""

from __future__ import annotations

from typing import Any

from itemwise.errors import ConfigError


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
