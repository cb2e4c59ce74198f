"""Time to tokenise whole prompts, beside that of query and items by themselves.

    .venv/bin/python scripts/tokenize_time.py [TOKENIZER_JSON]

Prints the best of some rounds for each way, and their ratio; by default for the demo model. The
queries have about 2,000 tokens, the items about 25.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from pathlib import Path

import tokenizers

from itemwise.checkpoint.locate import locate
from itemwise.config import DEMO_MODEL
from itemwise.request.prompts import Prompt, Segment, encode_parts, encode_prompts
from itemwise.request.tokenizer import TOKENIZER_FILE, Tokenizer

TEXT = "quiet hotel near the station brass lamp for a desk with 3 drawers, or 12; is it new?"
WORDS = re.findall(r"\S+", TEXT)


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("file", nargs="?", type=Path, help="a tokenizer.json")
    options.add_argument("--items", type=int, default=10_000)
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    file = chosen.file or locate(DEMO_MODEL) / TOKENIZER_FILE
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_file(str(file)))
    draw = random.Random(0)
    shared: Prompt = [Segment(" ".join(draw.choices(WORDS, k=1700)) + " Passage:")]
    items: list[Prompt] = [
        [Segment(" " + " ".join(draw.choices(WORDS, k=20)))] for _ in range(chosen.items)
    ]
    times = {"parts": float("inf"), "whole": float("inf")}
    for _ in range(chosen.rounds):  # in turns, since the machine's speed changes
        for name, encode in (("parts", encode_parts), ("whole", encode_prompts)):
            started = time.perf_counter()
            encode(tokenizer, shared, items, max_tokens=None)
            times[name] = min(times[name], time.perf_counter() - started)
    found = encode_prompts(tokenizer, shared, items, max_tokens=None)
    print(f"{len(found.query)} tokens shared, {len(found.items.tokens)} in {len(items)} items")
    for name, seconds in times.items():
        print(f"{name} {seconds * 1e3:.1f} ms")
    print(f"whole / parts {times['whole'] / times['parts']:.2f}")


if __name__ == "__main__":
    main()
