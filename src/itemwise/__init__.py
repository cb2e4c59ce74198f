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
    from itemwise.request.decide.answers import Decisions
    from itemwise.request.decide.questions import Choice, Rating, YesNo
    from itemwise.scorer import Scorer
    from itemwise.types import RankedItem, ScoreResult

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "Choice",
    "ConfigError",
    "Decisions",
    "ItemwiseError",
    "QueueFullError",
    "RankedItem",
    "Rating",
    "RequestError",
    "ScoreResult",
    "Scorer",
    "SelfCheckError",
    "ShuttingDownError",
    "UnsupportedModelError",
    "YesNo",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "Scorer":
        from itemwise.scorer import Scorer

        return Scorer
    if name in ("RankedItem", "ScoreResult"):
        from itemwise import types

        return getattr(types, name)
    if name in ("Choice", "Rating", "YesNo"):
        from itemwise.request.decide import questions

        return getattr(questions, name)
    if name == "Decisions":
        from itemwise.request.decide.answers import Decisions

        return Decisions
    raise AttributeError(f"module `itemwise` has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
