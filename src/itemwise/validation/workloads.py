"""Workloads of a validation: token ids of query and items, labels, delimiter, mutations."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itemwise.checkpoint.read import read_config
from itemwise.errors import ConfigError, RequestError
from itemwise.request.tokenizer import TOKENIZER_FILE, Tokenizer
from itemwise.validation.files import Json, read_json

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """A request to repeat, and how one of its items is changed.

    Attributes:
        name: `default`, `demo`, or the name of its file.
        query: token ids all items share.
        items: token ids of each item, at least two.
        labels: token ids to score.
        delimiter: the token that a multi-item server puts between query and item, or None.
        apply_softmax: softmax over the labels; otherwise probabilities over the vocabulary.
        mutated_index: the item that the isolation checks change, counted from 0.
        appended_token: token that the changed-length mutation appends to it.
    """

    name: str
    query: Ids
    items: tuple[Ids, ...]
    labels: Ids
    delimiter: int | None = None
    apply_softmax: bool = True
    mutated_index: int = 1
    appended_token: int = 13

    @property
    def max_id(self) -> int:
        """The largest token id in use."""
        ids = [*self.query, *self.labels, self.appended_token, *self.same_length_item]
        ids += [token for item in self.items for token in item]
        return max(ids if self.delimiter is None else [*ids, self.delimiter])

    @property
    def same_length_item(self) -> Ids:
        """The mutated item with its first token plus one (minus one if that is reserved)."""
        first, *rest = self.items[self.mutated_index]
        top = max(token for item in (self.query, *self.items) for token in item)
        fits = first + 1 != self.delimiter and first < top
        return (first + 1 if fits else first - 1, *rest)

    @property
    def changed_length_item(self) -> Ids:
        """The mutated item with one more token."""
        return (*self.items[self.mutated_index], self.appended_token)

    def with_item(self, item: Ids) -> list[Ids]:
        """The items, with the mutated one replaced."""
        items = list(self.items)
        items[self.mutated_index] = item
        return items

    def repeated(self, count: int) -> list[Ids]:
        """The items over and over, `count` in all."""
        return [self.items[i % len(self.items)] for i in range(count)]

    def random_ids(self, count: int, length: int, seed: int) -> list[Ids]:
        """`count` seeded runs of `length` token ids from this workload's vocabulary."""
        # Ids up to the largest one in the query or an item, without the delimiter.
        top = max(token for item in (self.query, *self.items) for token in item)
        draw = random.Random(f"{seed}:{count}:{length}")
        pool = [token for token in range(top + 1) if token != self.delimiter]
        return [tuple(draw.choices(pool, k=length)) for _ in range(count)]


# Token ids of Qwen's vocabulary, so that results are comparable with published ones.
DEFAULT = Workload(
    name="default",
    query=(1957, 1437, 25975, 25),
    items=(
        (358, 2948, 419, 1985, 13),
        (1096, 374, 17478, 323, 38123, 13),
        (1084, 4278, 438, 3601, 13),
        (56938, 4271, 323, 4937, 9691, 13),
        (2806, 5802, 279, 3349, 13),
    ),
    labels=(9834, 902),
    delimiter=151643,
)
DEMO_QUERY = "Does this passage answer the question: is it a fruit?"
DEMO_ITEMS = (
    " a red apple.",
    " a steel hammer.",
    " some ripe pears.",
    " an old car.",
    " it rains.",
)
DEMO_LABELS = ((" yes", " no"), ("yes", "no"), ("y", "n"))


def demo_workload(folder: Path | None = None) -> Workload:
    """A workload for small vocabularies: texts, tokenised by the model's tokenizer.

    Without a folder, or if it has no `tokenizer.json`, each token is a byte of UTF-8.

    Raises:
        CheckpointError: `tokenizer.json` is damaged.
        ConfigError: the tokenizer has no labels that are one token.
    """
    tokenizer = None if folder is None else Tokenizer.from_folder(folder)
    if tokenizer is None or folder is None:
        query, items = _bytes(DEMO_QUERY), tuple(map(_bytes, DEMO_ITEMS))
        return Workload("demo", query, items, _bytes("yn"), delimiter=0, appended_token=ord("."))
    query = tuple(tokenizer.encode(DEMO_QUERY))
    items = tuple(map(tuple, tokenizer.encode_batch(DEMO_ITEMS)))
    used = {token for ids in (query, *items) for token in ids}
    delimiter = _unused_special(folder, used)
    labels = _labels(tokenizer)
    return Workload("demo", query, items, labels, delimiter, appended_token=items[0][-1])


def _bytes(text: str) -> Ids:
    return tuple(text.encode())


def _labels(tokenizer: Tokenizer) -> Ids:
    for pair in DEMO_LABELS:
        try:
            labels = tuple(tokenizer.label_id(text) for text in pair)
        except RequestError:
            continue
        if len(set(labels)) == len(labels):
            return labels
    raise ConfigError(
        "the model's tokenizer has no single tokens for `yes` and `no` nor for `y` and `n`; give a "
        "workload in token ids with --workload FILE"
    )


def _unused_special(folder: Path, used: set[int]) -> int:
    """The id of a special token that no text uses, else the lowest unused id."""
    added = read_json(folder / TOKENIZER_FILE).get("added_tokens") or []
    special = [token["id"] for token in added if token.get("special") and token["id"] not in used]
    return min(special, default=next(i for i in range(len(used) + 1) if i not in used))


def workload_for(folder: Path) -> Workload:
    """The default workload if it fits the model's vocabulary, else the demo workload.

    Raises:
        CheckpointError: the folder cannot be read.
        ConfigError: neither fits.
    """
    vocab_size = read_config(folder).vocab_size
    if vocab_size > DEFAULT.max_id:
        return DEFAULT
    workload = demo_workload(folder)
    if vocab_size <= workload.max_id:
        raise ConfigError(
            f"the demo workload has token id {workload.max_id}, but the model's vocabulary has "
            f"only {vocab_size} tokens; give a workload that fits with --workload FILE"
        )
    return workload


def load_workload(name: str, folder: Path | None = None) -> Workload:
    """The workload that a command line names: `default`, `demo`, or a JSON file.

    Args:
        name: as given.
        folder: the model's, whose tokenizer `demo` uses.

    Raises:
        ConfigError: the file is not a workload; names every fault.
        ResultsError: the file cannot be read.
    """
    if name == "default":
        return DEFAULT
    if name == "demo":
        return demo_workload(folder)
    return workload_of(name, read_json(Path(name)))


def workload_of(name: str, fields: Json) -> Workload:
    """A workload from JSON: `query items labels`, optionally the other attributes.

    Raises:
        ConfigError: with every fault.
    """
    known = ("query", "items", "labels", "delimiter", "apply_softmax", "mutated_index")
    problems = [
        f"`{field}` is not a known field, expected {', '.join(known)} or appended_token"
        for field in fields
        if field not in (*known, "appended_token", "name")
    ]
    for field in ("query", "labels"):
        if not _is_ids(fields.get(field)):
            problems.append(f"`{field}` is {fields.get(field)!r}, expected token ids")
    items = fields.get("items")
    if not (isinstance(items, list) and len(items) > 1 and all(map(_is_ids, items))):
        problems.append(
            "`items` is wrong, expected two or more lists of token ids, none of them empty"
        )
    problems += _other_problems(fields, len(items) if isinstance(items, list) else 0)
    if problems:
        raise ConfigError(f"workload `{name}`: " + "; ".join(problems))
    index = fields.get("mutated_index", 1)
    return Workload(
        name=str(fields.get("name", name)),
        query=tuple(fields["query"]),
        items=tuple(map(tuple, fields["items"])),
        labels=tuple(fields["labels"]),
        delimiter=fields.get("delimiter"),
        apply_softmax=fields.get("apply_softmax", True),
        mutated_index=index,
        appended_token=fields.get("appended_token", fields["items"][index][-1]),
    )


def _other_problems(fields: Json, num_items: int) -> list[str]:
    problems = []
    labels = fields.get("labels")
    if isinstance(labels, list) and _is_ids(labels) and len(set(labels)) < len(labels):
        problems.append("`labels` has a label twice, expected distinct labels")
    for field in ("delimiter", "appended_token"):
        value = fields.get(field)
        if value is not None and not _is_id(value):
            problems.append(f"`{field}` is {value!r}, expected a token id")
    if not isinstance(fields.get("apply_softmax", True), bool):
        problems.append(f"`apply_softmax` is {fields['apply_softmax']!r}, expected true or false")
    index = fields.get("mutated_index", 1)
    if not (_is_id(index) and index < max(num_items, 2)):
        problems.append(f"`mutated_index` is {index!r}, expected 0 to {max(num_items, 2) - 1}")
    delimiter = fields.get("delimiter")
    lists = [fields.get("query"), *(fields.get("items") or [])]
    if delimiter is not None and any(isinstance(ids, list) and delimiter in ids for ids in lists):
        problems.append("`delimiter` occurs in the query or an item, expected an unused token id")
    return problems


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_id, value))


def as_lists(items: Sequence[Ids]) -> list[list[int]]:
    """Items as JSON lists."""
    return [list(item) for item in items]
