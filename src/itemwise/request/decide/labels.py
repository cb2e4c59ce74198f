"""Labels as tokens: what a model can say at the place where it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from itemwise.request.decide.wording import Form
from itemwise.request.prompts import Prompt, spell
from itemwise.request.tokenizer import Tokenizer

_PAIRS = tuple(a + b for a in ascii_uppercase for b in ascii_uppercase)


@dataclass(frozen=True)
class Labels:
    """The labels of a form, and the tokens that they are at the place of the answer.

    Attributes:
        tokens: by label, in order; None for a label that is not one token, or that of another.
        pairs: labels of two letters, which many options get.
        cases: by label, the token of the same word in its other case (`yes`, `Yes`).
    """

    tokens: Mapping[str, int | None]
    pairs: Mapping[str, int]
    cases: Mapping[str, int]

    def of(self, number: int) -> dict[str, int | None]:
        """The labels of so many answers with their tokens; fewer if there are no more."""
        if number <= len(self.tokens) or not self.pairs:
            return dict(list(self.tokens.items())[:number])
        return dict(list(self.pairs.items())[:number])


def find_labels(
    tokenizer: Tokenizer, tail: Prompt, form: Form, spaces: Sequence[str] = ("",)
) -> Labels:
    """The labels of a form after a prompt that ends in `tail`.

    Args:
        tokenizer: of the model.
        tail: what stands before the answer: the form's last line and what follows it.
        form: whose labels they are.
        spaces: what may stand before a label; that under which most labels are tokens is taken,
            of equal ones the first.
    """
    texts = form.labels or tuple(ascii_uppercase)
    tried = [_tokens(tokenizer, tail, texts, space) for space in spaces]
    tokens = max(tried, key=lambda found: sum(token is not None for token in found.values()))
    space = spaces[tried.index(tokens)]
    cases: dict[str, int] = {}
    pairs: dict[str, int] = {}
    if not form.labels:
        found = _tokens(tokenizer, tail, _PAIRS, space)
        pairs = {text: token for text, token in found.items() if token is not None}
    elif all(text.isalpha() for text in texts):
        others = {text: text.lower() if text.istitle() else text.title() for text in texts}
        found = _tokens(tokenizer, tail, tuple(others.values()), space)
        taken = set(tokens.values())
        for text, other in others.items():
            token = found[other]
            if token is not None and token not in taken:
                cases[text] = token
    return Labels(tokens, pairs, cases)


def _tokens(
    tokenizer: Tokenizer, tail: Prompt, texts: Sequence[str], space: str
) -> dict[str, int | None]:
    """By text, the one token that it adds after the tail; None if it is not one, or another's."""
    before = spell(tokenizer, tail)
    start, *wholes = tokenizer.encode_texts([before, *(before + space + text for text in texts)])
    found: dict[str, int | None] = {}
    for text, ids in zip(texts, wholes, strict=True):
        is_one = ids[:-1] == start and len(ids) == len(start) + 1
        found[text] = ids[-1] if is_one and ids[-1] not in found.values() else None
    return found
