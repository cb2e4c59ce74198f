"""Prints the import graph of the source: rooms, the arrows between them, and circles.

A room is a folder, or a file at the top. Imports inside functions count.

    python scripts/import_graph.py                  # of this checkout
    python scripts/import_graph.py OTHER/src/itemwise
"""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = "itemwise"


def reached(path: Path, files: set[str]) -> set[str]:
    """The files that a file imports, as dotted names below the package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.removeprefix(f"{PACKAGE}.") for name in names}
    return found & files


def circle(graph: dict[str, set[str]]) -> str:
    """The first circle of a graph, or `none`."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " <- ".join(error.args[1])
    return "none"


def main(source: Path) -> None:
    """Prints the graph of the package in a folder."""
    paths = {
        ".".join(path.relative_to(source).with_suffix("").parts): path
        for path in sorted(source.rglob("*.py"))
        if path.name != "__init__.py"
    }
    files = {name: reached(path, set(paths)) - {name} for name, path in paths.items()}
    rooms: dict[str, set[str]] = {}
    for name, others in files.items():
        room = name.split(".")[0]
        rooms.setdefault(room, set()).update({other.split(".")[0] for other in others} - {room})
    for room, others in sorted(rooms.items(), key=lambda item: len(item[1])):
        print(f"{room:16}{len(others):3}  {', '.join(sorted(others))}")
    print(f"rooms: {len(rooms)}, arrows between them: {sum(map(len, rooms.values()))}")
    print(f"files: {len(files)}, arrows between them: {sum(map(len, files.values()))}")
    print(f"circles of rooms: {circle(rooms)}; of files: {circle(files)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "src" / PACKAGE)
