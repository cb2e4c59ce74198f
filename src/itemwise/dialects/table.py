"""Which formats there are, and which one a body is of."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import itemwise.dialects
from itemwise.dialects.base import Dialect, Fault, common_error


@functools.cache
def dialects() -> tuple[Dialect, ...]:
    """The `DIALECT` of every module of this room that has one."""
    names = [module.name for module in pkgutil.iter_modules(itemwise.dialects.__path__)]
    modules = [importlib.import_module(f"itemwise.dialects.{name}") for name in sorted(names)]
    return tuple(module.DIALECT for module in modules if hasattr(module, "DIALECT"))


@functools.cache
def by_path() -> dict[str, tuple[Dialect, ...]]:
    """The formats of each path; the one that takes what others leave comes last."""
    found: dict[str, tuple[Dialect, ...]] = {}
    for dialect in sorted(dialects(), key=lambda each: each.takes is None):
        for path in dialect.paths:
            found[path] = (*found.get(path, ()), dialect)
    return found


def dialect_of(path: str, body: Mapping[str, Any]) -> Dialect:
    """The format of a body that was posted to a path which has one."""
    choices = by_path()[path]
    return next((each for each in choices if each.takes and each.takes(body)), choices[-1])


def fallback(path: str) -> Dialect | None:
    """The format of a path before a body has told which one it is of; None if it has none."""
    choices = by_path().get(path)
    return choices[-1] if choices else None


def error_body(path: str, fault: Fault) -> dict[str, Any]:
    """The error as clients of a path read it, before the body has told which format it is of."""
    dialect = fallback(path)
    return dialect.error(fault) if dialect else common_error(fault)
