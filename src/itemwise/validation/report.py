"""The report of a validation: a Markdown summary and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itemwise.validation.charts import Chart, charts
from itemwise.validation.files import Json, write_text
from itemwise.validation.markdown import markdown_code, markdown_table, markdown_text

PAGE_FILE = "index.html"
SUMMARY_FILE = "summary.md"
GIB = 1 << 30
TITLES = {
    "same_length_isolation_zero": "Isolation, an item changed at the same length",
    "changed_length_isolation_zero": "Isolation, an item made longer",
    "delimiter_aligned_equiv_le_0p02": "Multi against serial, delimiter in the query",
    "speedup_n32_ge_3x": "Speed-up at 32 items, p50",
    "jax_serial_vs_torch_serial_le_0p02": "Serial against PyTorch in float32",
}
WHAT_FILES_HOLD = {
    "multi": "itemwise evaluate, multi",
    "serial": "itemwise evaluate, serial",
    "multi_vs_serial": "itemwise compare, multi against serial",
    "parity": "itemwise compare, against PyTorch",
}


def write_report(folder: Path, result: Json, results: dict[str, Json]) -> None:
    """Writes `summary.md` and `index.html` from everything that was measured.

    Args:
        folder: of the report.
        result: of `validate`.
        results: JSON of `multi`, `serial`, `multi_vs_serial` and `parity`, as far as they exist.

    Raises:
        ResultsError: a file cannot be written.
    """
    pictures = charts(results)
    write_text(folder / SUMMARY_FILE, summary(result, results, pictures))
    write_text(folder / PAGE_FILE, page(folder, result, results, pictures))


def page(folder: Path, result: Json, results: dict[str, Json], pictures: list[Chart]) -> str:
    """The HTML page."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    multi = results.get("multi", {})
    return environment.get_template("report.html.j2").render(
        result=result,
        subtitle=_subtitle(result),
        verdict=verdict(result),
        verdict_lines=verdict_lines(result),
        checks=check_rows(result),
        charts=pictures,
        probes=_probe_rows(multi),
        sweeps=_sweep_rows(multi),
        facts=_facts(result, results),
        files=_files(folder, result),
    )


def summary(result: Json, results: dict[str, Json], pictures: list[Chart]) -> str:
    """The Markdown summary."""
    name, subtitle = markdown_text(result["name"]), markdown_text(_subtitle(result))
    lines = [f"# Validation of {name}", "", subtitle, ""]
    lines += [f"**{verdict(result)}**", "", *map(markdown_text, verdict_lines(result)), ""]
    rows = check_rows(result)
    if rows:
        head = ("check", "measured", "runbook's bound", "", "Itemwise's bound", "")
        cells = [
            (
                r["title"],
                r["value"],
                r["bound"],
                _word(r["passed"]),
                r["strict_bound"],
                _word(r["strict_passed"]),
            )
            for r in rows
        ]
        lines += ["## Checks", "", *markdown_table(head, cells), ""]
        notes = [f"{row['title']}: {row['note']}" for row in rows if row["note"]]
        lines += [*(f"- {markdown_text(note)}" for note in notes), ""]
    probes = _probe_rows(results.get("multi", {}))
    if probes:
        found = [(p["what"], p["cases"], p["value"], p["verdict"]) for p in probes]
        headings = ("probe", "cases", "largest change", "")
        lines += ["## Further isolation probes", "", *markdown_table(headings, found), ""]
    for chart in pictures:
        if chart.name in ("speedup", "latency", "errors"):
            lines += [f"## {chart.title}", "", *markdown_table(chart.headings, chart.rows), ""]
    lines += ["## What was measured", "", *markdown_table(("", ""), _facts(result, results)), ""]
    lines += ["## Commands", "", *markdown_code(result["commands"], "sh"), ""]
    return "\n".join(lines)


def verdict(result: Json) -> str:
    """The verdict in one sentence."""
    if not result["complete"]:
        return "Not complete"
    if result["all_pass"]:
        return "Passed: all five checks and every further probe"
    return "Failed"


def verdict_lines(result: Json) -> list[str]:
    """The reasons for the verdict."""
    if not result["complete"]:
        return [f"Ended early: {result['error'] or 'still running'}"]
    failed = [name for name, check in result["checks"].items() if not check["pass"]]
    strict = [
        name + (f" ({check['note']})" if "note" in check else "")
        for name, check in result["strict_checks"].items()
        if not check["pass"]
    ]
    lines = []
    if failed:
        lines.append(f"Failed checks: {', '.join(failed)}.")
    if not result["probes_pass"]:
        lines.append("A further probe changed a score, or the control did not detect a leak.")
    lines.append(
        "Itemwise's own, stricter bounds are met, too."
        if not strict
        else f"Itemwise's own, stricter bounds are not met for: {', '.join(strict)}."
    )
    return lines


def check_rows(result: Json) -> list[dict[str, Any]]:
    """A row for each of the five checks."""
    if "checks" not in result:
        return []
    rows = []
    for name, check in result["checks"].items():
        strict = result["strict_checks"][name]
        rows.append(
            {
                "title": TITLES[name],
                "value": _value(check["value"]),
                "bound": f"{check['relation']} {check['bound']:g}",
                "passed": check["pass"],
                "strict_bound": f"{strict['relation']} {strict['bound']:g}",
                "strict_passed": strict["pass"],
                "note": check.get("note") or strict.get("note"),
            }
        )
    return rows


def _value(value: float | None) -> str:
    if value is None:
        return "not measured"
    return "0.0" if value == 0 else f"{value:.4g}"


def _word(passed: bool) -> str:
    return "pass" if passed else "FAIL"


def _subtitle(result: Json) -> str:
    environment = result["environment"]
    machine, versions = environment["machine"], environment["versions"]
    return (
        f"{environment['date']} on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / GIB:.0f} GiB; Itemwise {versions.get('itemwise', '?')}, "
        f"JAX {versions.get('jax', '-')}"
    )


def _probe_rows(multi: Json) -> list[dict[str, str]]:
    rows = []
    for probe in multi.get("probes", {}).values():
        value, passed = probe["max_abs_diff"], probe["pass"]
        word = "not measured" if passed is None else _word(passed)
        css = "soft" if passed is None else "pass" if passed else "fail"
        cases = str(len(probe.get("cases", {}))) if passed is not None else "-"
        shown = "-" if value is None else _value(value)
        row = {"what": probe["what"], "cases": cases, "value": shown}
        rows.append({**row, "verdict": word, "css": css})
    control = multi.get("negative_control")
    if control:
        seen = control["detects_leak"]
        rows.append(
            {
                "what": f"{control['what']} (negative control)",
                "cases": "1",
                "value": _value(control["max_abs_diff"]),
                "verdict": "detected, as it should be" if seen else "NOT DETECTED",
                "css": "pass" if seen else "fail",
            }
        )
    return rows


def _sweep_rows(multi: Json) -> list[dict[str, str]]:
    rows = []
    for case in (multi.get("sweeps") or {}).get("cases", []):
        refused = case.get("refused")
        rows.append(
            {
                "varied": case["varied"].replace("_", " "),
                "query": str(case["query_tokens"]),
                "count": str(case["num_items"]),
                "length": str(case["item_tokens"]),
                "seconds": f"{case['latency_sec']:.3g}" if "latency_sec" in case else "-",
                "diff": f"refused: {refused}" if refused else _value(case["max_abs_diff_alone"]),
            }
        )
    return rows


def _facts(result: Json, results: dict[str, Json]) -> list[tuple[str, str]]:
    environment, settings = result["environment"], result["settings"]
    multi, amount = results.get("multi", {}), settings["amount"]
    versions = ", ".join(f"{name} {v}" for name, v in environment["versions"].items())
    facts = [
        ("model", result["model"]),
        ("type", str(multi.get("server_dtype") or settings["dtype"])),
        ("workload", result["workload"]),
        ("chunk size", f"{settings['chunk_size']} (0: no limit)"),
        ("items of a request", _listed(amount["item_counts"])),
        ("with the serial server", _listed(settings["serial_item_counts"])),
        ("rounds", f"{amount['rounds']} timed after {amount['warmup']} for warm-up"),
        ("sweep", amount["sweep"]),
        ("percentiles", str(multi.get("percentiles", "-"))),
        ("prefix cache", "off in the multi server, on in the serial server"),
        ("versions", versions),
        ("commit", str(environment["git_commit"] or "unknown")),
        ("took", f"{result.get('seconds', '-')} s"),
    ]
    engine = (multi.get("server_info") or {}).get("engine") or {}
    if engine:
        device, check = engine["device"], engine["self_check"]
        facts.append(("device", f"{device['kind']} ({device['platform']})"))
        facts.append(("server's self-check", str(check.get("status", "-"))))
    notes = [
        note for name in ("multi", "serial") for note in results.get(name, {}).get("notes", [])
    ]
    return [*facts, *(("note", note) for note in notes)]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _files(folder: Path, result: Json) -> list[tuple[str, str]]:
    named = [(str(result["files"][key]), text) for key, text in WHAT_FILES_HOLD.items()]
    named += [
        ("validation.json", "verdict, settings, commands"),
        (SUMMARY_FILE, "this report as Markdown"),
    ]
    named += [(f"{mode}-server.log", f"log of the {mode} server") for mode in ("multi", "serial")]
    return [(name, text) for name, text in named if (folder / name).exists()]
