"""Prints the tables of docs/migrating.md, from the rules for flags of other servers.

python scripts/flag_tables.py --write    puts them into the page
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from itemwise.cli.foreign_flags import NO_EFFECT, REFUSED, SAME_AS, NoEffect, Only

PAGE = Path(__file__).parents[1] / "docs" / "migrating.md"
BEGIN = "<!-- tables: scripts/flag_tables.py -->\n"


def tables() -> str:
    """The three tables in Markdown."""
    same = [
        (f"`{rule.option}`", _names(rule.flags, but=rule.option), rule.meaning) for rule in SAME_AS
    ]
    parts = (
        ("Flags with an equal here", ("option", "flags", "remarks"), same),
        ("Flags without effect", ("why nothing is lost", "flags"), map(_no_effect, NO_EFFECT)),
        (
            "Flags that are refused",
            ("reason", "flags"),
            [(f"{rule.why[0].upper()}{rule.why[1:]}.", _names(rule.flags)) for rule in REFUSED],
        ),
    )
    return "\n\n".join(
        f"## {title}\n\n" + "\n".join(_table(heads, rows)) for title, heads, rows in parts
    )


def _no_effect(rule: NoEffect) -> tuple[str, str]:
    why = rule.why
    if isinstance(rule.check, Only):
        values = " or ".join(f"`{value}`" for value in rule.check.allowed if value)
        why += f" Only with {values}; otherwise refused: {rule.check.why}."
    return why, _names(rule.flags)


def _names(flags: str, but: str = "") -> str:
    names = [flag.partition("=")[0] for flag in flags.split()]
    return " ".join(f"`{name}`" for name in names if name != but or len(names) == 1)


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"| {' | '.join('---' for _ in heads)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    if "--write" in sys.argv:
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(text.partition(BEGIN)[0] + BEGIN + "\n" + tables() + "\n", encoding="utf-8")
    else:
        print(tables())
