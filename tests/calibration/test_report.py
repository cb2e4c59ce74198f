from __future__ import annotations

import re
from html.parser import HTMLParser

from itemwise.calibration.report import LEFT, SIDE, TOP, describe, headline, page
from itemwise.calibration.study import study
from tests.calibration.synthetic import draw

FACTS = {"model": "<b>tiny</b>", "labelled set": "set.jsonl"}


class Tags(HTMLParser):
    """Counts elements and checks that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_has_a_plot_before_and_after_for_each_type() -> None:
    found = study({"choice": draw(400, 2.5, (0.5, -0.5)), "yes_no": draw(400, 0.5, (0.5, -0.5))})
    text = page(found, FACTS)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.counts["svg"] == 6  # both types, and all
    bins = [*found.before.bins, *found.after.bins]
    bins += [b for one in found.kinds.values() for b in (*one.before.bins, *one.after.bins)]
    assert tags.counts["circle"] == len(bins)
    assert headline(found) in text
    assert "<b>tiny" not in text
    assert "&lt;b&gt;tiny" in text
    assert not re.search(r"(src|href)=|@import|url\(", text)  # self-contained


def test_points_are_at_confidence_and_accuracy() -> None:
    found = study({"choice": draw(400, 2.5, (0.5, -0.5))})
    text = page(found, FACTS)
    bins = [*found.kinds["choice"].before.bins, *found.kinds["choice"].after.bins]
    points = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text)
    for (x, y), each in zip(points, bins, strict=True):
        assert abs((float(x) - LEFT) / SIDE - each.confidence) < 1e-3
        assert abs(1 - (float(y) - TOP) / SIDE - each.accuracy) < 1e-3


def test_words_say_what_is_used() -> None:
    found = study({"choice": draw(400, 2.5, (0.5, -0.5))})
    one = found.kinds["choice"]
    assert f"Temperature {one.calibration.temperature:.3g} (standard error" in describe(one)
    assert f"{one.before.measures.ece:.3f} before" in headline(found)
