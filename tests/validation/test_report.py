"""The report: its verdicts, its page, what it says of runs that failed or ended early."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from itemwise.machine import environment
from itemwise.validation.charts import charts
from itemwise.validation.check import run_checks, summary
from itemwise.validation.compare import compare_multi_serial, parity
from itemwise.validation.files import Json
from itemwise.validation.report import page, verdict, verdict_lines, write_report
from itemwise.validation.validate import Settings, probes_pass, settings_json
from tests.validation.planted import Fault, measured_once, reference

pytest.importorskip("matplotlib")


def bundle(fault: Fault | None = None) -> tuple[Json, dict[str, Json]]:
    multi, serial = measured_once("multi", fault), measured_once("serial", None)
    both = compare_multi_serial(multi, serial)
    found = parity(multi, serial, reference(), reference(dtype="bfloat16"))
    # What a page shows must not depend on how busy the machine is.
    both["performance"]["32"]["speedup_vs_serial_p50"] = 12.0
    found["torch_performance"]["32"]["speedup_vs_torch_serial_p50"] = 30.0
    plain, strict = (summary(run_checks(both, found, strict=s)) for s in (False, True))
    result: Json = {
        "model": "folder/<planted>",
        "name": "<planted>",
        "complete": True,
        "error": None,
        "files": {
            name: f"{name}.json" for name in ("multi", "serial", "multi_vs_serial", "parity")
        },
        "settings": settings_json(Settings()),
        "workload": "default",
        "commands": ["itemwise serve --model-path '<planted>'"],
        "environment": environment(),
        "checks": plain["checks"],
        "strict_checks": strict["checks"],
        "probes_pass": probes_pass(multi),
        "all_pass": plain["all_pass"] and probes_pass(multi),
    }
    results = {"multi": multi, "serial": serial, "multi_vs_serial": both, "parity": found}
    return result, results


class Tags(HTMLParser):
    """Counts tags, notes ids, and checks that they close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        fields = dict(attrs)
        self.ids += [str(fields["id"])] if "id" in fields else []
        self.links += [str(fields[name]) for name in ("src", "href") if fields.get(name)]
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_stands_alone(tmp_path: Path) -> None:
    result, results = bundle()
    write_report(tmp_path, result, results)
    text = (tmp_path / "index.html").read_text()
    tags = Tags(text)
    assert tags.open == []
    assert tags.count["svg"] == 6
    assert "script" not in tags.count
    assert len(set(tags.ids)) == len(tags.ids)
    assert not [link for link in tags.links if "://" in link]
    assert "prefers-color-scheme: dark" in text
    assert "currentColor" in text
    assert "&lt;planted&gt;" in text
    assert "<planted>" not in text
    assert "Passed: all five checks and every further probe" in text
    markdown = (tmp_path / "summary.md").read_text()
    assert "| Isolation, an item changed at the same length | 0.0 | == 0 | pass |" in markdown
    assert "FAIL" not in markdown


def test_every_chart_states_its_finding_and_shows_its_data() -> None:
    found = {chart.name: chart for chart in charts(bundle()[1])}
    assert list(found) == ["isolation", "equivalence", "parity", "errors", "speedup", "latency"]
    assert found["isolation"].title == "No probe changed a score: every difference is exactly 0.0"
    assert "to the last bit" in found["equivalence"].title
    assert re.match(r"[\d.]+ times as fast", found["speedup"].title)
    for chart in found.values():
        assert chart.rows
        assert {len(row) for row in chart.rows} == {len(chart.headings)}


def test_a_leak_shows_in_verdict_chart_and_page(tmp_path: Path) -> None:
    result, results = bundle("leak")
    assert verdict(result) == "Failed"
    lines = " ".join(verdict_lines(result))
    assert "same_length_isolation_zero" in lines
    assert "A further probe changed a score" in lines
    pictures = charts(results)
    chart = next(chart for chart in pictures if chart.name == "isolation")
    assert re.match(r"6 of 8 probes changed scores, by up to", chart.title)
    assert "FAIL" in page(tmp_path, result, results, pictures)


def test_a_run_that_ended_early_has_a_report_too(tmp_path: Path) -> None:
    result, results = bundle()
    for key in ("checks", "strict_checks", "probes_pass"):
        del result[key]
    early: dict[str, Any] = {**result, "complete": False, "all_pass": False, "error": "lost it"}
    few = {"multi": {name: results["multi"][name] for name in ("isolation", "probes")}}
    write_report(tmp_path, early, few)
    assert "Ended early: lost it" in (tmp_path / "summary.md").read_text()
    assert Tags((tmp_path / "index.html").read_text()).count["svg"] == 1
    write_report(tmp_path, early, {})
    assert "svg" not in Tags((tmp_path / "index.html").read_text()).count


def test_summary_shows_names_of_others_as_text(tmp_path: Path) -> None:
    result, results = bundle()
    hostile = "<script>alert(1)</script>\n# forged | [link](http://example.com)"
    plain = (tmp_path / "plain", {**result, "name": "m", "model": "m"})
    forged = (tmp_path / "forged", {**result, "name": hostile, "model": hostile})
    forged[1]["commands"] = [f"itemwise serve --model-path {hostile}"]
    results["multi"]["notes"] = [hostile]
    kinds = []
    for folder, found in (plain, forged):
        folder.mkdir()
        write_report(folder, found, results)
        text = (folder / "summary.md").read_text()
        assert "<script>" not in text
        headings = [line for line in text.splitlines() if line.startswith("#")]
        kinds.append([line.split(" ")[0] for line in headings])
    assert kinds[0] == kinds[1]
