"""The terminal output of the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from itemwise.progress import say
from itemwise.validation.charts import isolation_values
from itemwise.validation.check import Check
from itemwise.validation.files import Json
from itemwise.validation.matrix import COLUMNS, cells
from itemwise.validation.report import PAGE_FILE, check_rows, verdict, verdict_lines


def print_json(content: Json) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def print_evaluation(results: Json, path: Path) -> None:
    """A summary of isolation and speed."""
    rows = [(name, _number(value)) for name, value in isolation_values(results)]
    control = results.get("negative_control")
    if control:
        rows.append(("a leak made on purpose", _number(control["max_abs_diff"])))
    _print_table("", ("unchanged items: probe", "largest change"), rows)
    speeds = [
        (count, f"{row['p50_sec']:.4g}", f"{row['p95_sec']:.4g}", f"{row['items_per_sec_p50']:.4g}")
        for count, row in results.get("performance", {}).items()
    ]
    _print_table("", ("items", "p50 s", "p95 s", "items/s at p50"), speeds)
    for count, why in results.get("performance_refused", {}).items():
        say(f"{count} items were refused: {why}")
    for note in results.get("notes", []):
        say(f"Note: {note}")
    say(f"Results: {path}")


def print_comparison(both: Json, parity: Json | None) -> None:
    """The differences and speed-ups."""
    rows = [("multi against serial", _number(both["equivalence"]["max_abs_diff"]))]
    aligned = both.get("equivalence_query_plus_delimiter")
    if aligned:
        rows.append(("... with the delimiter in the query", _number(aligned["max_abs_diff"])))
    if parity:
        for text, key in (
            ("serial against PyTorch", "jax_serial_vs_torch_serial"),
            ("multi against PyTorch, multi-semantic", "jax_multi_vs_torch_multi_semantic"),
            ("PyTorch bfloat16 against float32", "torch_bfloat16_vs_torch_serial"),
        ):
            rows.append((text, _number(parity[f"max_abs_diff_{key}"])))
    _print_table("", ("compared", "largest difference"), rows)
    speedups = [
        (count, f"{row['speedup_vs_serial_p50']:.2f}") for count, row in both["performance"].items()
    ]
    _print_table("", ("items", "speed-up over serial, p50"), speedups)
    for count, row in (parity or {}).get("torch_performance", {}).items():
        if "speedup_vs_torch_serial_p50" in row:
            say(
                f"{row['speedup_vs_torch_serial_p50']:.2f} times as fast as transformers serial "
                f"({row['best_dtype']}) at {count} items"
            )


def print_checks(checks: Sequence[Check]) -> None:
    """The five checks and the verdict, one per line."""
    for check in checks:
        value = "not measured" if check.value is None else _number(check.value)
        word = "pass" if check.passed else "FAIL"
        line = f"{word}  {check.name}: {value}, expected {check.relation} {check.bound:g}"
        say(line + (f" ({check.note})" if check.note else ""))
    say(f"all_pass= {all(check.passed for check in checks)}")


def print_validation(result: Json) -> None:
    """The checks, the verdict, and the path of the report."""
    rows = [
        (
            row["title"],
            row["value"],
            f"{row['bound']} {'pass' if row['passed'] else 'FAIL'}",
            f"{row['strict_bound']} {'pass' if row['strict_passed'] else 'FAIL'}",
        )
        for row in check_rows(result)
    ]
    headings = ("check", "measured", "the runbook", "Itemwise's own")
    _print_table(f"Validation of {result['name']}", headings, rows)
    for line in (verdict(result) + ".", *verdict_lines(result)):
        say(line)
    say(f"Report: {Path(result['folder']) / PAGE_FILE}")


def print_matrix(matrix: Json, folder: Path) -> None:
    """The table of all models."""
    # One column per model: one row per model would be too wide for a terminal.
    columns = [[*cells(row)[:-1], row.get("verdict", "failed")] for row in matrix["rows"]]
    names, *rows = zip([title for _, title in COLUMNS], *columns, strict=True)
    _print_table("", names, rows)
    for row in matrix["rows"]:
        if "error" in row:
            say(f"{row['model']} failed: {row['error']}")
    say(f"Table: {folder / 'matrix.md'}, {folder / 'matrix.json'}")


def _number(value: float) -> str:
    return "0.0" if value == 0 else f"{value:.4g}"


def _print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    table = Table(title=title or None)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
