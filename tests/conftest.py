"""Shared fixtures: tiny random checkpoints and engines that start in about two seconds."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import hypothesis
import jax
import ml_dtypes
import numpy as np
import pytest

from itemwise.checkpoint.locate import locate
from itemwise.checkpoint.shapes import model_dict
from itemwise.checkpoint.write import write_random
from itemwise.config import DEMO_MODEL, EngineConfig
from itemwise.engine.cpu_level import BY_NAME, LEVELS, choose_level
from itemwise.engine.engine import Engine
from itemwise.engine.platform import step_shapes
from itemwise.engine.start import Verdicts
from itemwise.machine import instructions
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import describe_weights
from itemwise.ops.step.arrays import StepShape
from itemwise.types import CppLevel, CpuLevelName

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # tests share a GPU
# Neither types nor ranks of arrays are widened unless the code says so.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Hypothesis's deadlines are off: a busy machine would miss them.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
VOCAB_SIZE = 500
# Pages of 32 tokens and three lanes: several pages, lanes and steps with few tokens.
SMALL: dict[str, Any] = {
    "page_tokens": 32,
    "step_lanes": 3,
    "kv_cache_bytes": 1 << 20,
}
# `kv_cache_bytes` of the demo model where a test needs no other, so that its programs compile once.
DEMO_POOL = 1 << 24
# The levels that this processor can run; tests of those in C++ are skipped where none are compiled.
CPU_LEVELS: tuple[CpuLevelName, ...] = tuple(
    level.name for level in LEVELS if not level.is_cpp or level.suits(instructions())
)
CPP_LEVELS: tuple[CppLevel, ...] = tuple(name for name in get_args(CppLevel) if name in CPU_LEVELS)
FLOAT32_CPP_LEVELS = tuple(name for name in CPP_LEVELS if BY_NAME[name].activations == "float32")
BFLOAT16_CPP_LEVELS = tuple(name for name in CPP_LEVELS if name not in FLOAT32_CPP_LEVELS)
# What an engine takes here where nobody names a level: for weights in bfloat16, in float32.
DEFAULT_LEVELS = {
    choose_level(EngineConfig(), np.dtype(weights)).name
    for weights in (ml_dtypes.bfloat16, np.float32)
}
KEPT_S = 14 * 24 * 3600.0  # seconds that a compiled program is kept
NO_LEVEL = "CPU level "  # begins the reason of a test that is skipped for want of a level


def slow_unless_default(levels: Iterable[CpuLevelName]) -> list[Any]:
    """Parameters of a test for each level; all but the machine's own are marked slow."""
    marks = {name: [] if name in DEFAULT_LEVELS else [pytest.mark.slow] for name in levels}
    return [pytest.param(name, marks=marks[name]) for name in marks]


def tiled_step_shapes(*arguments: Any) -> list[StepShape]:
    """As `step_shapes`, with lanes that lie side by side as on TPU."""
    return [
        replace(shape, lanes=shape.tokens // shape.lane_tokens, lane_alignment=shape.lane_tokens)
        for shape in step_shapes(*arguments)
    ]


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a random checkpoint of a named shape with a small vocabulary, once a session."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            config = model_dict(name, vocab_size=VOCAB_SIZE)
            made[name] = tmp_path_factory.mktemp("checkpoints") / name
            specs = describe_weights(ModelConfig.from_hf(config))
            dtype = np.dtype(ml_dtypes.bfloat16)
            write_random(made[name], config, specs, seed=0, dtype=dtype)
        return made[name]

    return make


def pytest_sessionstart(session: pytest.Session) -> None:
    """Keeps only programs between runs, and those for two weeks: each run checks its engines."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        remove_verdicts(kept_programs(session.config), time.time() - KEPT_S)


def remove_verdicts(folder: Path, oldest: float) -> None:
    """Removes verdicts of self-checks, and programs from before a time."""
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another run removes the same
            if path.is_file() and (path.suffix == ".json" or path.stat().st_mtime < oldest):
                path.unlink()


def kept_programs(config: pytest.Config) -> Path:
    """Where compiled programs stay after a run, in pytest's cache, so that the next is shorter.

    Without that cache (`-p no:cacheprovider`) they stay as long as the process.
    """
    cache = getattr(config, "cache", None)
    return _own_folder() if cache is None else Path(cache.mkdir("compiled"))


@functools.cache
def _own_folder() -> Path:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@pytest.fixture(scope="session")
def cache_folder(pytestconfig: pytest.Config) -> str:
    """A `compilation_cache_dir` that all processes of the session share, and later sessions.

    A test that plants a fault which the compiled programs do not contain takes `no_verdicts` too:
    it would find the verdict of the self-check on the programs without the fault.
    """
    return str(kept_programs(pytestconfig) / "engines")


@pytest.fixture(scope="session")
def small(cache_folder: str) -> dict[str, Any]:
    """Settings of an engine with small steps, which loads programs that were compiled before."""
    return {**SMALL, "compilation_cache_dir": cache_folder}


@pytest.fixture(scope="session")
def make_engine(
    make_checkpoint: Callable[[str], Path], small: dict[str, Any]
) -> Callable[..., Engine]:
    """An engine for a named shape, or for the demo model, with small steps.

    Keywords are fields of `EngineConfig`. A test whose outcome depends on the CPU level names it,
    and is skipped where the machine cannot run it; without a name it is the machine's own. A test
    of the self-check takes `no_verdicts`, since a verdict is kept with the programs.
    """

    def make(
        name: str = "tiny-qwen3", level: CpuLevelName | None = None, **settings: Any
    ) -> Engine:
        folder = locate(name) if name == DEMO_MODEL else make_checkpoint(name)
        if level is not None:
            require(level)
            settings["cpu_level"] = level
        return Engine(folder, EngineConfig(**{**small, **settings}))

    return make


@pytest.fixture
def no_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines check themselves, whatever another one found of the same programs."""
    monkeypatch.setattr(Verdicts, "find", lambda *_: None)
    monkeypatch.setattr(Verdicts, "keep", lambda *_: None)


@pytest.fixture(scope="session")
def shared_engine(make_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    """As `make_engine`, but one engine for the same arguments; for tests that only score with it.

    Each call gives it without known prefixes.
    """
    start = functools.cache(make_engine)

    def share(*arguments: Any, **settings: Any) -> Engine:
        engine = start(*arguments, **settings)
        engine.forget_prefixes()
        pages = engine.info()["pages"]
        assert pages["available"] == pages["total"], "a test before left something open"
        return engine

    return share


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Models this small only wait for a second thread, and long where the machine is busy."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def require(level: CpuLevelName) -> None:
    """Skips the test if this machine cannot run the level."""
    lack = BY_NAME[level].lack()
    if lack:
        pytest.skip(f"{NO_LEVEL}{level} {lack}")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names bytes by their length: a name may not hold a time stamp, as what gzip writes does."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Notes the CPU level that a test names by a parameter."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    case = params.get("case")
    named = {params.get("level"), params.get("backend"), *(case if isinstance(case, tuple) else ())}
    item.user_properties += [("cpu_level", name) for name in CPU_LEVELS if name in named]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which CPU levels were tested, and which this machine cannot run."""
    stats = terminalreporter.stats
    reports = [report for kind in ("passed", "failed") for report in stats.get(kind, [])]
    noted = {value for report in reports for name, value in report.user_properties}
    ran = [name for name in CPU_LEVELS if name in noted]
    reasons = {report.longrepr[2].removeprefix("Skipped: ") for report in stats.get("skipped", [])}
    skipped = sorted(reason for reason in reasons if reason.startswith(NO_LEVEL))
    absent = [f"{level.name} {level.lack()}" for level in LEVELS if level.name not in CPU_LEVELS]
    if ran or skipped:
        terminalreporter.section("CPU levels")
        terminalreporter.line(f"ran: {', '.join(ran) or 'none'}")
        for reason in (*absent, *skipped):
            terminalreporter.line(f"not on this machine: {reason.removeprefix(NO_LEVEL)}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-cases", type=int, default=300, help="requests of the HTTP fuzz")


@pytest.fixture(scope="session")
def fuzz_cases(request: pytest.FixtureRequest) -> int:
    """Requests that the HTTP fuzz sends."""
    count: int = request.config.getoption("--fuzz-cases")
    return count
