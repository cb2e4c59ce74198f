"""The demonstration: the demo model ranks three short lists, offline."""

from __future__ import annotations

import numpy as np
from rich.console import Console

from itemwise.cli.output import ranking_table
from itemwise.scorer import Scorer

# Full matches among other words, in another order or number; partial matches; no match.
LISTS: dict[str, list[str]] = {
    "waterproof hiking boots": [
        "Wireless keyboard with number pad",
        "Hiking boot, waterproof, wide fit",
        "Rubber boots for children",
        "Cotton bath towels, set of 4",
        "Waterproof phone case",
        "Waterproof jacket for hiking",
        "Hiking boots in brown leather",
        "Cookbook for slow cookers",
        "Boots for winter hiking, warm and waterproof",
        "Waterproof hiking boots with ankle support",
    ],
    "reset password": [
        "Cancel a subscription",
        "Why was my card declined?",
        "Password rules: length and characters",
        "How to reset your password",
        "Reset the router to factory settings",
        "Change your delivery address",
        "The password reset email does not arrive",
        "Where is my invoice?",
    ],
    # An invented word beside similar ones: the model must compare the letters.
    "zorbly teapot": [
        "Zorbel teapot, 1 litre",
        "Teapots by Zorbly",
        "Zorbly kettle",
        "Glass jug with lid",
        "Zorbly teapot in white",
        "Cast iron teapot",
        "Zombie costume",
        "Tea, loose leaf",
    ],
}


def run_demo(console: Console) -> bool:
    """Ranks the lists and prints them; returns whether items score the same together and alone."""
    console.print("Loading, compiling and checking the demo model ...")
    scorer = Scorer.from_pretrained()
    same = True
    for query, items in LISTS.items():
        console.print(ranking_table(query, scorer.rank(query, items)))
        same &= _same_bits_alone(scorer, query, items)
    verdict = scorer.info()["self_check"]
    num_items = sum(map(len, LISTS.values()))
    console.print(
        f"{num_items} items scored together and one by one: "
        f"{'the same bits' if same else 'DIFFERENT BITS'}. "
        f"Self-check at start: {verdict['status']} in {verdict['seconds']:.1f} s.\n\n"
        "What to try next:\n"
        '  itemwise rank --query "desk lamp" "Brass lamp for the desk" "Tea kettle"\n'
        "  itemwise serve                          # the same over HTTP, on port 30000\n"
        "  itemwise serve --model-path Qwen/Qwen3-0.6B\n"
        "  itemwise --help",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    return same and verdict["status"] == "passed"


def _same_bits_alone(scorer: Scorer, query: str, items: list[str]) -> bool:
    """Whether every item has the same score bits alone as together with the others."""

    def scores(some: list[str]) -> bytes:
        result = scorer.score(query, some, apply_softmax=True, apply_template=True)
        return np.asarray(result.scores).tobytes()

    return scores(items) == b"".join(scores([item]) for item in items)
