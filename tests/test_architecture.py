"""What may import what, and where JAX, the environment and heavy libraries may be touched.

The rules are read from the source with `ast`. Each has a planted fault that it must find.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import itemwise

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "itemwise"

# A file imports only from rooms above its own, and within its room without circles. A room is a
# folder, or a file at the top. docs/architecture.md says what each is for.
ORDER = (
    "errors",
    "progress",
    "types",
    "config",
    "machine",
    "machine_code",
    "routing",
    "request",
    "dialects",
    "ops",
    "models",
    "checkpoint",
    "engine",
    "tpu",
    "scorer",
    "offline",
    "server",
    "ray",
    "validation",
    "bench",
    "calibration",
    "capacity",
    "cli",
)
# They start others or, in the case of `__init__`, load others late. Nobody imports them.
ENTRY_POINTS = ("__init__", "__main__", "launch_server")
# Rooms and files that run on the host and import no JAX themselves, so that a change of device
# cannot reach them.
HOST_ONLY = (
    *("errors", "progress", "types", "config", "machine", "machine_code", "request", "dialects"),
    "routing",
    "checkpoint",
    *("calibration", "offline", "server", "ray", "validation", "cli", "models/config"),
    *(
        "engine/step_packer",
        "engine/packed_sequence",
        "engine/pages",
        "engine/open_request",
        "engine/results",
    ),
    *("engine/packed_batcher", "engine/selfcheck", "engine/scheduler"),
    *("ops/step/arrays", "ops/packed/base"),
    *ENTRY_POINTS,
)
JIT_ALLOWED = {
    Path("engine/lowering.py"): "lowers them",
    Path("models/decoder.py"): "inside a program: a layer is traced once",
}
WEB_LIBRARIES = {"fastapi", "starlette", "uvicorn"}
LATE_LIBRARIES = {"torch", "transformers", "matplotlib", "jinja2", "pyarrow", "fsspec"}
# Themselves loaded late.
ALL_TORCH = {Path(f"bench/compare/{name}.py") for name in ("batching", "cascade", "torch_ways")}


@dataclass(frozen=True)
class Import:
    """An imported name: `jax.numpy`, or `itemwise.types.StepShape`."""

    name: str
    line: int
    late: bool  # inside a function, or for the type checker alone
    relative: bool = False

    @property
    def library(self) -> str:
        return self.name.split(".")[0]


@dataclass(frozen=True, eq=False)
class File:
    """A source file, its module (the first name below the package) and its syntax tree."""

    path: Path
    module: str
    tree: ast.Module

    @functools.cache  # noqa: B019  a tree is read by many rules
    def imports(self) -> list[Import]:
        return list(_imports(self.tree, late=False))

    @functools.cache  # noqa: B019
    def attributes(self) -> list[tuple[str, int]]:
        """Attributes that are used, and names imported from other libraries, with their line."""
        used = [node for node in ast.walk(self.tree) if isinstance(node, ast.Attribute)]
        return [
            *((f"{ast.unparse(node.value)}.{node.attr}", node.lineno) for node in used),
            *((found.name, found.line) for found in self.imports()),
        ]


def _imports(node: ast.AST, late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            for alias in child.names:
                name = f"{child.module}.{alias.name}"
                yield Import(name, child.lineno, late, relative=child.level > 0)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            is_typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from _imports(child, late or is_function or is_typing)


def _parse(path: Path, text: str) -> File:
    return File(path, path.parts[0].removesuffix(".py"), ast.parse(text, filename=str(path)))


@functools.cache
def read() -> list[File]:
    paths = sorted(SOURCE.rglob("*.py"))
    return [_parse(path.relative_to(SOURCE), path.read_text(encoding="utf-8")) for path in paths]


def _own_module(name: str) -> str | None:
    """The module that an import from Itemwise reaches; None for other libraries."""
    parts = name.split(".")
    if parts[0] != "itemwise" or name == "itemwise.__version__":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in (*ORDER, *ENTRY_POINTS) else "__init__"


def order_problems(files: list[File]) -> Iterator[str]:
    for file in files:
        if file.module in ENTRY_POINTS:
            continue
        if file.module not in ORDER:
            yield f"{file.path} has no place in the order of modules"
            continue
        above = ORDER[: ORDER.index(file.module) + 1]
        for found in file.imports():
            module = _own_module(found.name)
            if module is not None and module not in above:
                yield f"{file.path}:{found.line} imports {found.name}, which is not above it"


def cycle_problems(files: list[File]) -> Iterator[str]:
    """Files of one package may import each other, but not in circles."""
    names = {".".join(("itemwise", *file.path.with_suffix("").parts)) for file in files}
    graph = TopologicalSorter[str]()
    for file in files:
        name = ".".join(("itemwise", *file.path.with_suffix("").parts))
        if file.path.name != "__init__.py":
            reached = {found.name for found in file.imports()}
            reached |= {target.rpartition(".")[0] for target in reached}
            graph.add(name, *(reached & names - {name}))
    try:
        graph.prepare()
    except CycleError as error:
        yield f"imports in a circle: {' <- '.join(error.args[1])}"


def relative_problems(files: list[File]) -> Iterator[str]:
    for file in files:
        for found in file.imports():
            if found.relative:
                yield f"{file.path}:{found.line} has a relative import"


def library_problems(files: list[File]) -> Iterator[str]:
    for file in files:
        for found in file.imports():
            where = f"{file.path}:{found.line} imports {found.name}"
            late = found.late or file.path in ALL_TORCH
            if found.library in LATE_LIBRARIES and not late:
                yield f"{where} at module level"
            if found.library in WEB_LIBRARIES and file.module != "server":
                yield f"{where} outside server/"
            host_only = {file.module, file.path.with_suffix("").as_posix()} & {*HOST_ONLY}
            if found.library in ("jax", "jaxlib") and host_only and not found.late:
                yield f"{where}, which is free of JAX"


def jit_problems(files: list[File]) -> Iterator[str]:
    for file in files:
        for name, line in file.attributes():
            if name.split(".")[-1] in ("jit", "pjit", "pmap") and file.path not in JIT_ALLOWED:
                yield f"{file.path}:{line} has {name}, expected in engine/lowering.py alone"


def environment_problems(files: list[File]) -> Iterator[str]:
    names = {"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.unsetenv"}
    for file in files:
        # A process that starts another may hand its environment on as a whole.
        passed_on = set()
        if file.module in ("validation", "bench"):
            calls = (node for node in ast.walk(file.tree) if isinstance(node, ast.Call))
            passed_on = {c.lineno for c in calls if ast.unparse(c) == "dict(os.environ)"}
        for name, line in file.attributes():
            if name in names and file.module != "config" and line not in passed_on:
                yield f"{file.path}:{line} has {name}, expected in config.py alone"


RULES: tuple[Callable[[list[File]], Iterator[str]], ...] = (
    order_problems,
    cycle_problems,
    relative_problems,
    library_problems,
    jit_problems,
    environment_problems,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_source_keeps_the_rule(rule: Callable[[list[File]], Iterator[str]]) -> None:
    assert list(rule(read())) == []


@functools.cache
def problems_here(rule: Callable[[list[File]], Iterator[str]]) -> set[str]:
    """What a rule finds in the source as it is."""
    return set(rule(read()))


@pytest.mark.parametrize(
    ("rule", "file", "fault"),
    [
        (order_problems, "request/check.py", "from itemwise.engine.engine import Engine"),
        (order_problems, "models/config.py", "from itemwise import checkpoint"),
        (order_problems, "types.py", "from itemwise import Scorer"),
        (order_problems, "ops/step/xla.py", "def f():\n    import itemwise.models.decoder"),
        (order_problems, "extra.py", "x = 1"),
        (cycle_problems, "models/layers.py", "from itemwise.models.decoder import forward"),
        (cycle_problems, "models/layers.py", "from itemwise.models import decoder"),
        (relative_problems, "models/decoder.py", "from .layers import linear"),
        (relative_problems, "engine/engine.py", "from . import batcher"),
        (library_problems, "engine/engine.py", "import torch"),
        (
            library_problems,
            "engine/engine.py",
            "try:\n    from transformers import AutoModel\nfinally: 0",
        ),
        (library_problems, "engine/pages.py", "import jax.numpy as jnp"),
        (library_problems, "scorer.py", "from fastapi import FastAPI"),
        (jit_problems, "engine/engine.py", "step = jax.jit(print)"),
        (jit_problems, "models/layers.py", "@jax.jit\ndef f(): ..."),
        (jit_problems, "ops/step/xla.py", "from jax import jit"),
        (environment_problems, "engine/engine.py", "x = os.environ['HOME']"),
        (environment_problems, "checkpoint/read.py", "x = os.getenv('HOME')"),
        (environment_problems, "engine/memory.py", "from os import environ"),
        (environment_problems, "engine/batcher.py", "x = dict(os.environ)"),
        (environment_problems, "bench/extra.py", "x = os.environ['HOME']"),
    ],
)
def test_planted_fault_is_found(
    rule: Callable[[list[File]], Iterator[str]], file: str, fault: str
) -> None:
    path = SOURCE / file
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    planted = _parse(Path(file), f"{text}\n{fault}\n")
    files = [planted, *(other for other in read() if other.path != planted.path)]
    (problem,) = set(rule(files)) - problems_here(rule)
    assert path.stem in problem


def test_late_import_of_torch_is_allowed() -> None:
    file = _parse(Path("engine/engine.py"), "def f():\n    import torch\n")
    assert list(library_problems([file])) == []


def test_order_names_no_absent_module() -> None:
    assert set(ORDER) - {file.module for file in read()} == set()


def test_architecture_page_lists_modules_in_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", page, flags=re.MULTILINE)
    assert tuple(name for name in listed if name not in ENTRY_POINTS) == ORDER


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("itemwise", "jax numpy fastapi uvicorn pydantic torch transformers beartype ray"),
        ("itemwise.cli.app", "jax fastapi uvicorn torch transformers matplotlib jinja2 httpx ray"),
        (
            "itemwise.validation.evaluate",
            "jax fastapi uvicorn torch transformers matplotlib jinja2",
        ),
        (
            "itemwise.validation.validate",
            "jax fastapi uvicorn torch transformers matplotlib jinja2",
        ),
    ],
)
def test_import_is_light(module: str, unwanted: str) -> None:
    code = f"import sys, {module}; print(*sorted(set({unwanted.split()}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_public_names_are_pinned() -> None:
    assert sorted(itemwise.__all__) == [
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
    for name in itemwise.__all__:
        assert getattr(itemwise, name) is not None
