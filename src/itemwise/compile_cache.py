"""Keeps our compiled programs in a folder of our own, and leaves JAX's cache to the host program.

JAX has one compilation cache for the whole process, and its settings are the host program's. They
are ours only while we compile.
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.experimental.compilation_cache import compilation_cache

logger = logging.getLogger("itemwise.engine")
_in_use = threading.Lock()


@contextmanager
def compiling_into(folder: Path | None) -> Iterator[None]:
    """JAX keeps what is compiled meanwhile in the folder, or nowhere; afterwards all is as before.

    One caller at a time; another waits. What the host program compiles at the same time on another
    thread is compiled as ever, but may be kept in our folder in place of its own; a setting of the
    cache that it changes at that time is lost.
    """
    ours: dict[str, Any] = {"jax_enable_compilation_cache": folder is not None}
    if folder is not None:
        ours |= {
            "jax_compilation_cache_dir": str(folder),
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
    with _in_use:
        before = {name: getattr(jax.config, name) for name in ours}
        try:
            _set(ours)
            yield
        finally:
            _set(before)


def _set(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX opens it anew, with these settings, at the next compile


_Made = TypeVar("_Made")
_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '([\w.-]+)'")


def with_whole_cache(make: Callable[[], _Made]) -> _Made:
    """Calls `make`, which compiles; makes anew what the compilation cache could not give.

    JAX neither writes entries at once nor writes over them, so one that a killed process left half
    written would cost its compile at every start.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make()
    damaged = set()
    for warning in caught:
        found = _DAMAGED.search(str(warning.message))
        if found:
            damaged.add(found[1])
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    folder: str | None = getattr(jax.config, "jax_compilation_cache_dir", None)
    if not damaged or folder is None:
        return made
    for path in Path(folder).iterdir():
        if any(path.name.startswith(f"{name}-") for name in damaged):
            path.unlink(missing_ok=True)
    logger.warning("damaged entries of the compilation cache made anew: %s", sorted(damaged))
    return make()
