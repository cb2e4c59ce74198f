"""Writes a labelled set: letters to a shop, and four questions about each, whose answers are known.

Each letter is put together from sentences that say which product it is about, what went wrong, how
the customer feels, and whether they want their money back. So the answers are known without anyone
reading. The same numbers of letters and seed give the same bytes.

    python examples/decisions/tickets.py > tickets.jsonl
    itemwise calibrate tickets.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from typing import Any

PRODUCTS = ("lamp", "kettle", "tent", "backpack", "keyboard", "blanket")
TOPICS = {
    "delivery": "the parcel was late, lost or sent to the wrong place",
    "quality": "the product is broken or does not work",
    "billing": "the amount paid or the invoice is wrong",
    "account": "signing in, passwords or personal data",
}
TOPIC_SENTENCES = {
    "delivery": (
        "The {product} that I ordered arrived two weeks late.",
        "The parcel with my {product} went to the wrong address.",
        "My {product} should have been here on Monday, and the courier never came.",
        "Tracking says that the {product} was delivered, but nobody saw a parcel.",
        "The courier left the box with the {product} out in the rain at another house.",
    ),
    "quality": (
        "The {product} broke on the second day.",
        "The {product} came with a crack and does not work.",
        "After one week the {product} is already falling apart.",
        "The {product} stopped working after I used it once.",
        "A part of the {product} is damaged and cannot be repaired.",
    ),
    "billing": (
        "I was charged twice for the {product}.",
        "The invoice for the {product} shows a higher price than your shop.",
        "My card was billed for three of them, and I bought one {product}.",
        "The discount on the {product} is missing from the bill.",
        "You took the payment for the {product} again this month.",
    ),
    "account": (
        "I ordered a {product} and now I cannot sign in any more.",
        "The password reset for the account with my {product} order never reaches me.",
        "Please change the email address of the account that I bought the {product} with.",
        "My login is blocked since I ordered the {product}.",
        "I cannot find my {product} order, since my account shows another person's name.",
    ),
}
MOODS = ("furious", "disappointed", "neutral", "content", "delighted")
MOOD_SENTENCES = (
    (
        "I am absolutely furious and will never buy from you again!",
        "This is an outrage, the worst shop that I have ever seen!",
        "I am so angry that I could scream.",
    ),
    (
        "I am rather disappointed.",
        "I had expected better from you, which is a pity.",
        "This made me a little sad.",
    ),
    (
        "I am writing to let you know.",
        "Here are the facts for your records.",
        "This is for your information.",
    ),
    (
        "Apart from that I am quite content with your shop.",
        "Otherwise it was a good experience, and I like it.",
        "Your staff were nice to me, which I liked.",
    ),
    (
        "Still, I love your shop, you are simply wonderful, thank you so much!",
        "Your team is fantastic and made my day, I am delighted!",
        "You are the best shop in the world, I am overjoyed!",
    ),
)
REFUND_SENTENCES = {
    True: (
        "I want my money back.",
        "Please refund the full amount.",
        "Return what I paid to my card.",
        "I ask for a refund.",
    ),
    False: (
        "Please tell me what happens next.",
        "I look forward to your answer.",
        "Can you look into it?",
        "Please call me about it.",
    ),
}


def tickets(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Labelled requests in System One's format; the first ones do not depend on the count."""
    rng = random.Random(seed)
    for number in range(count):
        product, topic = rng.choice(PRODUCTS), rng.choice(list(TOPICS))
        mood, refund = rng.randrange(len(MOODS)), rng.random() < 0.5
        first = rng.choice(TOPIC_SENTENCES[topic]).format(product=product)
        rest = [rng.choice(MOOD_SENTENCES[mood]), rng.choice(REFUND_SENTENCES[refund])]
        rng.shuffle(rest)
        topics, products = list(TOPICS), list(PRODUCTS)
        rng.shuffle(topics)
        rng.shuffle(products)
        yield {
            "id": f"ticket-{number:04d}",
            "state": " ".join([first, *rest]),
            "questions": {
                "refund": {
                    "type": "noul",
                    "instructions": "The customer asks for their money back.",
                },
                "topic": {
                    "type": "choice",
                    "instructions": "What is the letter about?",
                    "criteria": {name: TOPICS[name] for name in topics},
                },
                "product": {
                    "type": "choice",
                    "instructions": "Which product does the letter mention?",
                    "criteria": dict.fromkeys(products),
                },
                "mood": {
                    "type": "score",
                    "instructions": "How does the customer feel?",
                    "criteria": list(MOODS),
                },
            },
            "answers": {"refund": refund, "topic": topic, "product": product, "mood": mood},
        }


def main() -> None:
    """Writes the set to standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--count", type=int, default=300, help="letters (300)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (0)")
    arguments = parser.parse_args()
    for ticket in tickets(arguments.count, arguments.seed):
        sys.stdout.write(json.dumps(ticket) + "\n")


if __name__ == "__main__":
    main()
