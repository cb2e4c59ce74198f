"""Keeps our compiled programs in a folder of our own, and leaves JAX's cache to the host program.

JAX has one compilation cache for the whole process, and its settings are the host program's. They
are ours only while we compile.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from itemwise.config import EngineConfig, cache_dir
from itemwise.machine_code import is_sealed, private_folder, remove, seal, seal_of

logger = logging.getLogger("itemwise.engine")
ENTRIES = "jit_*-cache"  # as JAX names them
_ENABLE = "jax_enable_compilation_cache"
_RAISE = "jax_raise_persistent_cache_errors"
_in_use, _replacing = threading.Lock(), threading.Lock()


def cache_folder(config: EngineConfig) -> Path | None:
    """Where the settings keep compiled programs; None for nowhere.

    A folder that others own or may write to is not used, which is logged: programs from there could
    be theirs.
    """
    if config.compilation_cache_dir == "":
        return None
    folder = Path(config.compilation_cache_dir or cache_dir() / "xla").absolute()
    try:
        return private_folder(folder)
    except OSError as error:
        logger.warning("Compiled programs are not kept (slower start): %s", error)
        return None


class CompileCounter:
    """Counts programs that XLA compiles in this process, whoever asks for them."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1


@functools.cache
def compile_counter() -> CompileCounter:
    """The process's counter; it counts from the first call on."""
    return CompileCounter()


@contextmanager
def compiling_into(folder: Path | None, *, strict: bool = False) -> Iterator[None]:
    """JAX keeps what is compiled meanwhile in the folder, or nowhere; afterwards all is as before.

    One caller at a time; another waits. What the host program compiles at the same time on another
    thread is compiled as ever, but may be kept in our folder in place of its own; a setting of the
    cache that it changes at that time is lost.

    Args:
        folder: keeps the programs; None for nowhere.
        strict: raise where an entry cannot be read or written, which JAX else only warns of; for
            `compile_whole`.
    """
    with _in_use:
        if folder is not None and not _remove_unsealed(folder):
            folder = None
        ours: dict[str, Any] = {_ENABLE: folder is not None}
        if folder is not None:
            ours |= {
                "jax_compilation_cache_dir": str(folder),
                "jax_persistent_cache_min_compile_time_secs": 0.0,
                "jax_persistent_cache_min_entry_size_bytes": -1,
                _RAISE: strict,
            }
        with _settings(ours):
            yield
        if folder is not None:
            _seal_new(folder)


def _remove_unsealed(folder: Path) -> bool:
    """Removes entries that are damaged or half written; whether all that stay can be trusted."""
    entries = list(folder.glob(ENTRIES))
    damaged = [path for path in entries if not is_sealed(path)]
    if not damaged:
        return True
    for path in damaged:
        remove(path)
    removed = not any(map(os.path.lexists, damaged))
    logger.warning(
        "%d of %d entries of the compilation cache %s are damaged or incomplete; %s.",
        *(len(damaged), len(entries), folder),
        "compiling them again" if removed else "they cannot be removed, so it is not used",
    )
    return removed


def _seal_new(folder: Path) -> None:
    """Seals the entries that have no seal yet; without one an entry is made anew later."""
    for path in folder.glob(ENTRIES):
        if not seal_of(path).exists():
            with contextlib.suppress(OSError):
                seal(path)


@contextmanager
def _settings(changed: dict[str, Any]) -> Iterator[None]:
    """JAX's settings changed for a while, and its cache opened anew with them at the next use."""
    before = {name: getattr(jax.config, name) for name in changed}
    try:
        _set(changed)
        yield
    finally:
        _set(before)


def _set(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_whole(
    lowered: jax.stages.Lowered, options: Any, folder: Path | None
) -> jax.stages.Compiled:
    """A program compiled in a strict `compiling_into(folder)`; damaged entries for it are replaced.

    JAX neither writes an entry at once nor writes over one. So an entry that a killed process left
    half written would cost its compile at every start. Entries of other programs with the same
    name go as well, and are made again when they are needed. While one program is replaced, damage
    in those that compile beside it is left to the next start.
    """
    compile_one = functools.partial(lowered.compile, compiler_options=options)
    try:
        return compile_one()
    except Exception as error:  # of whatever kind: of the disk, of the format, of XLA
        if folder is None:
            raise
        first = error
    with _replacing:
        if isinstance(first, OSError):  # the disk is full, or not ours to write: no damage
            with _settings({_RAISE: False}):
                return compile_one()
        with _settings({_ENABLE: False}):
            compile_one()  # raises what XLA says, if the fault is not the cache's
        _remove_entries(lowered, folder, first)
        with _settings({_RAISE: False}):
            return compile_one()


def _remove_entries(lowered: jax.stages.Lowered, folder: Path, error: Exception) -> None:
    found = re.match(r"module @([\w.-]+)", lowered.as_text())
    name = found[1] if found else ""
    logger.warning(
        "The compilation cache entry of %s in %s is damaged; compiling it again: %s: %s",
        name,
        folder,
        type(error).__name__,
        error,
    )
    for path in folder.glob(f"{glob.escape(name)}-*"):
        remove(path)  # if it stays, it costs its compile at every start
