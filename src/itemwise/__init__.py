"""Exact, fast scoring of many items against one shared query with a causal language model.

from itemwise import Scorer

Importing this package loads neither JAX nor a web framework; `Scorer` does, once it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from itemwise.errors import (
    CheckpointError,
    ConfigError,
    ItemwiseError,
    QueueFullError,
    RequestError,
    SelfCheckError,
    ShuttingDownError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from itemwise.scorer import Scorer
    from itemwise.types import RankedItem, ScoreResult

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "ItemwiseError",
    "QueueFullError",
    "RankedItem",
    "RequestError",
    "ScoreResult",
    "Scorer",
    "SelfCheckError",
    "ShuttingDownError",
    "UnsupportedModelError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "Scorer":
        from itemwise.scorer import Scorer

        return Scorer
    if name in ("RankedItem", "ScoreResult"):
        from itemwise import types

        return getattr(types, name)
    raise AttributeError(f"module `itemwise` has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
