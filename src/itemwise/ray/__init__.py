"""Itemwise on many machines, by Ray: `score_dataset` for Ray Data, `serve:app` for Ray Serve.

Needs the extra `ray`. Importing `itemwise` does not load this.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from itemwise.errors import ConfigError

if TYPE_CHECKING:
    from itemwise.offline.rows import RowForm
    from itemwise.ray.dataset import score_dataset
    from itemwise.ray.settings import Engines

if find_spec("ray") is None:
    raise ConfigError("`itemwise.ray` needs Ray, which is not installed: install itemwise[ray]")

__all__ = ["Engines", "RowForm", "score_dataset"]


def __getattr__(name: str) -> Any:
    # Ray Data and Ray Serve are large, and who needs one seldom needs the other.
    if name == "score_dataset":
        from itemwise.ray.dataset import score_dataset

        return score_dataset
    if name == "Engines":
        from itemwise.ray.settings import Engines

        return Engines
    if name == "RowForm":
        from itemwise.offline.rows import RowForm

        return RowForm
    raise AttributeError(f"module `itemwise.ray` has no attribute {name!r}")
