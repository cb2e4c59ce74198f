"""Raw request fields, decoded JSON or Python arguments, into a checked `ScoreRequest`.

Every fault is a `RequestError` that names the field, and the index if it has one. Checks run over
the array of all items' ids, which the request keeps; only a check that fails looks for the item
at fault.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, get_args

from itemwise.config import SpecialTokens, Tokenize
from itemwise.errors import RequestError
from itemwise.request.leniency import cut_text
from itemwise.request.prompts import (
    EncodedPrompts,
    Prompt,
    Segment,
    encode_parts,
    encode_prompts,
    num_bytes,
)
from itemwise.request.template import PromptTemplate
from itemwise.request.tokenizer import Tokenizer
from itemwise.types import Int32Array, ScoreRequest, TokenLists, Tokens, token_array

REQUEST_FIELDS = (
    "query",
    "items",
    "label_token_ids",
    "labels",
    "apply_softmax",
    "apply_template",
    "item_first",
    "tokenize",
    "special_tokens",
    "temperature",
    "chunk_size",
    "priority",
    "timeout_s",
    "truncate",
    "max_tokens_per_item",
)
MIN_TEMPERATURE = 1e-6  # float32 logits divided by less would overflow
MAX_TEMPERATURE = 1e6
MAX_PRIORITY = 2**31 - 1  # and -MAX_PRIORITY is the minimum

Ids = Sequence[int]


@dataclass(frozen=True)
class RequestLimits:
    """The limits that a request must keep.

    Attributes:
        vocab_size: V; token ids are below it.
        max_seq_len: maximum tokens of query, delimiter and one item together.
        max_items: maximum items of a request; None for no limit.
        delimiter: token id the engine puts between query and item, or None. It must not occur in
            either.
        num_head_labels: labels of the model's classification head; None for a language model. A
            request without labels asks for all of them.
        tokenize: how texts become tokens where the request does not say.
        special_tokens: what control tokens in texts are where the request does not say.
        truncate: whether items that are too long are cut where the request does not say.
    """

    vocab_size: int
    max_seq_len: int
    max_items: int | None = None
    delimiter: int | None = None
    num_head_labels: int | None = None
    tokenize: Tokenize = "whole"
    special_tokens: SpecialTokens = "auto"
    truncate: bool = False


class Checked(NamedTuple):
    """A request that can be scored.

    Attributes:
        request: in token ids.
        cut_items: items that were too long and of which only the beginning is left.
    """

    request: ScoreRequest
    cut_items: tuple[int, ...]


def check_request(
    fields: Mapping[str, Any],
    limits: RequestLimits,
    tokenizer: Tokenizer | None,
    template: PromptTemplate | None = None,
    *,
    may_lack_query: bool = False,
) -> Checked:
    """The request in token ids, checked against the model's limits.

    Args:
        fields: values by the names in `REQUEST_FIELDS`; None counts as absent, other names are
            ignored. Arrays of integers are treated as lists.
        limits: of the model and the server.
        tokenizer: for text; None if the checkpoint has none.
        template: for requests with `apply_template`; None if the checkpoint has none.
        may_lack_query: take an empty list as query; then no item may be empty.

    Raises:
        RequestError: anything is missing, of the wrong type or out of bounds.
    """
    raw_query = _query(fields.get("query"), may_lack_query)
    raw_items = _items(fields.get("items"), limits.max_items)
    if not _flag(fields, "apply_template"):
        template = None
    else:
        template = _usable(template, fields, raw_query, raw_items)
        if fields.get("labels") is None and fields.get("label_token_ids") is None:
            fields = {**fields, "labels": template.labels}
    if isinstance(raw_query, str) != isinstance(raw_items[0], str):
        raise RequestError(
            "mixed_input_types",
            f"`query` is {_kind(raw_query)} but `items[0]` is {_kind(raw_items[0])}, expected all "
            "text or all token ids",
            "items",
        )
    query_ids: Tokens
    item_ids: Sequence[Tokens]
    if isinstance(raw_query, str):
        texts = [str(item) for item in raw_items]
        found = _encoded(fields, raw_query, texts, limits, template, tokenizer)
        query_ids, item_ids, was_cut = found.query, found.items, found.cut
    else:
        query_ids = _integers((raw_query,), lambda _: "query", "query")[0]
        item_ids = _integers(raw_items, lambda row: f"items[{row}]", "items")
        item_ids, was_cut = _cut_ids(fields, len(query_ids), item_ids, limits)
    if limits.num_head_labels is not None:
        fields = _head_fields(fields, limits.num_head_labels)
    labels = _labels(fields, len(item_ids), tokenizer, limits)
    apply_softmax = _flag(fields, "apply_softmax")
    item_first = _flag(fields, "item_first")
    temperature = _temperature(fields.get("temperature"))
    chunk_size = _chunk_size(fields.get("chunk_size"))
    priority = _priority(fields.get("priority"))
    timeout_s = _timeout_s(fields.get("timeout_s"))
    if not len(query_ids) and not all(map(len, item_ids)):
        raise RequestError(
            "empty_query",
            "`query` and an item are both empty, expected at least one token to score after",
            "query",
        )
    _check_length(query_ids, item_ids, limits)
    vocab_size, delimiter = limits.vocab_size, limits.delimiter
    query = _checked_tokens([query_ids], lambda _: "query", "query", vocab_size, delimiter)
    items = _checked_tokens(item_ids, lambda row: f"items[{row}]", "items", vocab_size, delimiter)
    request = ScoreRequest(
        query[0],
        items,
        labels,
        apply_softmax,
        item_first,
        temperature,
        chunk_size,
        priority,
        timeout_s,
    )
    return Checked(request, tuple(index for index, cut in enumerate(was_cut) if cut))


def _query(value: Any, may_be_empty: bool) -> str | list[Any]:
    if value is None:
        raise RequestError(
            "missing_query", "`query` is missing, expected text or a list of token ids", "query"
        )
    query = value if isinstance(value, str) else _as_list(value)
    if query is None:
        raise RequestError(
            "invalid_query_type",
            f"`query` is {_kind(value)}, expected text or a list of token ids",
            "query",
        )
    if not query and not may_be_empty:
        raise RequestError("empty_query", "`query` is empty, expected at least one token", "query")
    return query


def _items(value: Any, max_items: int | None) -> list[str] | Sequence[Any]:
    """The items as a list of texts or lists of ids."""
    expected = "expected a list of texts or a list of lists of token ids"
    if value is None:
        raise RequestError("missing_items", f"`items` is missing, {expected}", "items")
    if isinstance(value, TokenLists):
        items: TokenLists | list[Any] | None = value
    else:
        items = None if isinstance(value, str) else _as_list(value)
    if items is None:
        raise RequestError("invalid_items_type", f"`items` is {_kind(value)}, {expected}", "items")
    if not items:
        raise RequestError("empty_items", "`items` is empty, expected at least one item", "items")
    if max_items is not None and len(items) > max_items:
        raise RequestError(
            "too_many_items",
            f"`items` has {len(items)} items, at most {max_items} are allowed; send several "
            "requests",
            "items",
        )
    if isinstance(items, TokenLists):
        return items
    return _rows(items)


def _rows(items: list[Any]) -> list[str] | list[list[Any]]:
    """`items` as all texts or all lists; a mixture is a `RequestError`."""
    kinds = set(map(type, items))
    if kinds <= {str} or kinds <= {list}:
        return items
    rows = [value if isinstance(value, str) else _as_list(value) for value in items]
    first_is_text = isinstance(rows[0], str)
    for index, (row, value) in enumerate(zip(rows, items, strict=True)):
        if row is None:
            raise RequestError(
                "invalid_items_type",
                f"`items[{index}]` is {_kind(value)}, expected text or a list of token ids",
                "items",
            )
        if isinstance(row, str) != first_is_text:
            raise RequestError(
                "mixed_input_types",
                f"`items[{index}]` is {_kind(value)} but `items[0]` is {_kind(items[0])}, "
                "expected all text or all token ids",
                "items",
            )
    return rows  # type: ignore[return-value]  # all str or all list, as checked above


def _usable(
    template: PromptTemplate | None,
    fields: Mapping[str, Any],
    query: str | list[Any],
    items: list[str] | Sequence[Any],
) -> PromptTemplate:
    """The template, if there is one and the request can use it."""
    if template is None:
        raise RequestError(
            "no_template",
            "`apply_template` is true but the model has no prompt_template.json; leave "
            "`apply_template` out and write the model's prompt into `query` and `items`",
            "apply_template",
        )
    if _flag(fields, "item_first"):
        raise RequestError(
            "item_first_with_template",
            "`apply_template` and `item_first` are both true, expected only one; a template "
            "puts the query first",
            "item_first",
        )
    for name, value in (("query", query), ("items", items[0])):
        if not isinstance(value, str):
            raise RequestError(
                "mixed_input_types",
                f"`apply_template` is true but `{name}` has token ids, expected text",
                name,
            )
    return template


def _encoded(
    fields: Mapping[str, Any],
    query: str,
    items: list[str],
    limits: RequestLimits,
    template: PromptTemplate | None,
    tokenizer: Tokenizer | None,
) -> EncodedPrompts:
    """Token ids of query and items, and which items were cut."""
    if tokenizer is None:
        raise RequestError("no_tokenizer", _no_tokenizer("query"), "query")
    apart = _choice(fields, "tokenize", get_args(Tokenize), limits.tokenize) == "parts"
    reading = _choice(fields, "special_tokens", get_args(SpecialTokens), limits.special_tokens)
    special = reading == "control" or (reading == "auto" and template is None)
    most = _max_item_tokens(fields, limits)
    kept = items
    if most is not None and most < limits.max_seq_len:
        kept = _cut_texts(items, most, tokenizer, special)
    shared: Prompt = [Segment(query, special)]
    prompts: list[Prompt] = [[Segment(item, special)] for item in kept]
    place = 0  # of the item's own text in its prompt
    max_tokens = limits.max_seq_len
    if template is not None:
        shared = template.query_part(shared[0])
        prompts, place = [template.item_part(item[0]) for item in prompts], 1
    item_first = _flag(fields, "item_first")
    encode = encode_prompts
    if apart or limits.delimiter is not None:  # nothing merges across a delimiter
        encode = encode_parts
        max_tokens -= limits.delimiter is not None
    elif item_first:  # the whole sequences are the items: they share nothing
        shared, prompts = (), [[*item, *shared] for item in prompts]
    elif template is not None:  # its text in front of an item is the same for all
        shared = [*shared, prompts[0][0]]
        prompts, place = [item[1:] for item in prompts], 0
    may_cut = None if most is None else place
    found = encode(tokenizer, shared, prompts, max_tokens=max_tokens, cut=may_cut)
    pairs = zip(items, kept, found.cut, strict=True)
    found = replace(found, cut=[len(left) < len(item) or cut for item, left, cut in pairs])
    if not item_first:
        return found
    begin, after = found.query.tolist(), list[int]()
    if encode is encode_parts:
        begin, after = tokenizer.begin, tokenizer.not_begun(begin)
    rows = [[*begin, *item.tolist()] for item in found.items]
    return replace(found, query=token_array(after), items=TokenLists.of(rows))


def _max_item_tokens(fields: Mapping[str, Any], limits: RequestLimits) -> int | None:
    """Most tokens of an item, beyond which it is cut; None if one that is too long is refused."""
    truncate = fields.get("truncate")
    if truncate is not None and not isinstance(truncate, bool):
        wrong = f"`truncate` is {_kind(truncate)}, expected true or false"
        raise RequestError("invalid_truncate", wrong, "truncate")
    name = "max_tokens_per_item"
    most = _whole(fields.get(name), name, 1, math.inf, "an integer, 1 or more")
    if not (limits.truncate if truncate is None else truncate):
        return None
    return limits.max_seq_len if most is None else min(most, limits.max_seq_len)


def _cut_texts(items: list[str], most: int, tokenizer: Tokenizer, special: bool) -> list[str]:
    for index, item in enumerate(items):
        num_bytes(item, "invalid_items_type", f"items[{index}]")
    return [cut_text(item, most, tokenizer, special=special) for item in items]


def _cut_ids(
    fields: Mapping[str, Any],
    num_shared: int,
    items: Sequence[Tokens],
    limits: RequestLimits,
) -> tuple[Sequence[Tokens], list[bool]]:
    """The items with as many ids as there is room for, and which were cut."""
    most = _max_item_tokens(fields, limits)
    room = limits.max_seq_len - num_shared - (limits.delimiter is not None)
    if most is None or room < 1:  # without room the query is at fault, which is found later
        return items, []
    most = min(most, room)
    was_cut = [len(item) > most for item in items]
    return ([item[:most] for item in items] if any(was_cut) else items), was_cut


def _choice(fields: Mapping[str, Any], name: str, choices: Sequence[str], default: str) -> str:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, str) and value in choices:
        return value
    got = repr(value[:30]) if isinstance(value, str) else _kind(value)
    raise RequestError(
        f"invalid_{name}", f"`{name}` is {got}, expected {' or '.join(choices)}", name
    )


def _head_fields(fields: Mapping[str, Any], num_labels: int) -> Mapping[str, Any]:
    """The fields with all of a classification head's labels, if none are asked for."""
    if fields.get("labels") is not None:
        raise RequestError(
            "conflicting_labels",
            f"`labels` is set, but the model has a classification head; leave it out for all "
            f"{num_labels} labels of the head, or choose by `label_token_ids`, 0 to "
            f"{num_labels - 1}",
            "labels",
        )
    if fields.get("label_token_ids") is not None:
        return fields
    return {**fields, "label_token_ids": list(range(num_labels))}


def _labels(
    fields: Mapping[str, Any],
    num_items: int,
    tokenizer: Tokenizer | None,
    limits: RequestLimits,
) -> tuple[tuple[int, ...], ...]:
    """Label token ids of each item, from `label_token_ids` or `labels`."""
    ids, texts = fields.get("label_token_ids"), fields.get("labels")
    if ids is None and texts is None:
        raise RequestError(
            "missing_label_token_ids",
            "`label_token_ids` is missing, expected a list of token ids (or `labels`, a list of "
            "texts of one token each)",
            "label_token_ids",
        )
    if ids is not None and texts is not None:
        raise RequestError(
            "conflicting_labels",
            "`label_token_ids` and `labels` are both given, expected only one of them",
            "labels",
        )
    if ids is not None:
        name = "label_token_ids"
        rows, shared = _label_rows(ids, name, "invalid_token_id_type", num_items)
        labels = tuple(map(tuple, _integers(rows, _label_place(name, shared), name)))
    else:
        name = "labels"
        rows, shared = _label_rows(texts, name, "invalid_labels_type", num_items)
        labels = _label_ids(rows, _label_place(name, shared), tokenizer)
    place = _label_place(name, shared)
    _check_labels(labels, place, name, limits)
    for row, row_labels in enumerate(labels):
        if len(set(row_labels)) < len(row_labels):
            twice = Counter(row_labels).most_common(1)[0][0]
            raise RequestError(
                "duplicate_labels",
                f"`{place(row)}` has token id {twice} more than once, expected distinct labels",
                name,
            )
    return labels * num_items if shared else labels


def _check_labels(
    labels: tuple[tuple[int, ...], ...],
    place: Callable[[int], str],
    param: str,
    limits: RequestLimits,
) -> None:
    """Returns if every label is one of the vocabulary, or of the classification head."""
    most = limits.num_head_labels
    if most is None:
        _checked_tokens(labels, place, param, limits.vocab_size)
        return
    for row, ids in enumerate(labels):
        for index, label in enumerate(ids):
            if not 0 <= label < most:
                raise RequestError(
                    "token_id_exceeds_vocab" if label >= most else "token_id_negative",
                    f"`{place(row)}[{index}]` is {_number(label)}, expected 0 to {most - 1} (the "
                    f"model has a classification head of {most} labels)",
                    param,
                )


def _label_place(name: str, shared: bool) -> Callable[[int], str]:
    return lambda row: name if shared else f"{name}[{row}]"


def _label_rows(value: Any, name: str, code: str, num_items: int) -> tuple[list[list[Any]], bool]:
    """Lists of labels, and whether a single list is for all items."""
    expected = "expected one list for all items or a list per item"
    if isinstance(value, TokenLists):
        value = [row.tolist() for row in value]
    values = None if isinstance(value, str) else _as_list(value)
    if values is None:
        raise RequestError(code, f"`{name}` is {_kind(value)}, {expected}", name)
    if not values:
        raise RequestError("empty_label_token_ids", f"`{name}` is empty, {expected}", name)
    rows = [None if isinstance(v, str) else _as_list(v) for v in values]
    num_lists = sum(row is not None for row in rows)
    if num_lists == 0:
        return [values], True
    for index, row in enumerate(rows):
        if row is None:
            raise RequestError(
                code,
                f"`{name}[{index}]` is {_kind(values[index])} but others are lists, {expected}",
                name,
            )
        if not row:
            raise RequestError(
                "empty_label_token_ids",
                f"`{name}[{index}]` is empty, expected at least one label",
                name,
            )
    if num_lists != num_items:
        raise RequestError(
            "invalid_label_token_ids_length",
            f"`{name}` has {num_lists} lists for {num_items} items, {expected}",
            name,
        )
    return [row for row in rows if row is not None], False


def _label_ids(
    rows: list[list[Any]], place: Callable[[int], str], tokenizer: Tokenizer | None
) -> tuple[tuple[int, ...], ...]:
    """Token ids of label texts; equal texts are looked up once."""
    if tokenizer is None:
        raise RequestError("no_tokenizer", _no_tokenizer("labels"), "labels")
    places: dict[str, str] = {}
    for row, texts in enumerate(rows):
        for index, text in enumerate(texts):
            where = f"{place(row)}[{index}]"
            if not isinstance(text, str):
                raise RequestError(
                    "invalid_labels_type", f"`{where}` is {_kind(text)}, expected text", "labels"
                )
            if text not in places:
                places[text] = where
                num_bytes(text, "invalid_labels_type", where)
    known: dict[str, int] = {}
    found = tokenizer.encode_labels(list(places))
    for (text, where), ids in zip(places.items(), found, strict=True):
        try:
            known[text] = tokenizer.one_token(text, ids)
        except RequestError as error:
            raise RequestError(error.code, f"`{where}`: {error}", "labels") from None
    return tuple(tuple(known[text] for text in texts) for texts in rows)


def _integers(
    rows: Sequence[Sequence[Any]], place: Callable[[int], str], param: str
) -> Sequence[Ids]:
    """`rows` with every id an int; NumPy integers are converted, everything else is refused."""
    if isinstance(rows, TokenLists) or set(map(type, chain.from_iterable(rows))) <= {int}:
        return rows
    return [
        [_integer(value, f"{place(row)}[{index}]", param) for index, value in enumerate(ids)]
        for row, ids in enumerate(rows)
    ]


def _integer(value: Any, where: str, param: str) -> int:
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    # JSON integers beyond 64 bits arrive as floats; they are out of range, not of the wrong type.
    if isinstance(value, float) and value.is_integer() and abs(value) >= 2.0**63:
        return int(value)
    raise RequestError(
        "invalid_token_id_type", f"`{where}` is {_kind(value)}, expected an integer", param
    )


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is None:
        return False
    if isinstance(value, bool):
        return value
    raise RequestError(
        f"invalid_{name}_type", f"`{name}` is {_kind(value)}, expected true or false", name
    )


def _temperature(value: Any) -> float:
    expected = f"a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
    number = _real(value, "temperature", MIN_TEMPERATURE, MAX_TEMPERATURE, expected)
    return 1.0 if number is None else number


def _chunk_size(value: Any) -> int | None:
    return _whole(value, "chunk_size", 0, math.inf, "an integer, 0 or more (0 for no limit)")


def _priority(value: Any) -> int:
    expected = f"an integer from -{MAX_PRIORITY} to {MAX_PRIORITY}; lower ones run first"
    return _whole(value, "priority", -MAX_PRIORITY, MAX_PRIORITY, expected) or 0


def _timeout_s(value: Any) -> float | None:
    least, most = math.ulp(0.0), sys.float_info.max
    return _real(value, "timeout_s", least, most, "a number of seconds above 0")


def _real(value: Any, name: str, low: float, high: float, expected: str) -> float | None:
    """A number from `low` to `high`, or None if it is absent."""
    if value is None:
        return None
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        got = _kind(value)
    else:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if low <= number <= high:  # false for NaN, too
            return number
        got = f"{number:g}"
    raise RequestError(f"invalid_{name}", f"`{name}` is {got}, expected {expected}", name)


def _whole(value: Any, name: str, low: float, high: float, expected: str) -> int | None:
    """An integer from `low` to `high`, or None if it is absent."""
    if value is None:
        return None
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        got = _kind(value)
    elif low <= int(value) <= high:
        return int(value)
    else:
        got = _number(int(value))
    raise RequestError(f"invalid_{name}", f"`{name}` is {got}, expected {expected}", name)


def _check_length(query: Tokens, items: Sequence[Tokens], limits: RequestLimits) -> None:
    lengths = items.lengths.tolist() if isinstance(items, TokenLists) else list(map(len, items))
    longest = max(lengths)
    num_delimiters = 0 if limits.delimiter is None else 1
    total = len(query) + num_delimiters + longest
    if total <= limits.max_seq_len:
        return
    delimiter = ", the delimiter" if num_delimiters else ""
    raise RequestError(
        "sequence_too_long",
        f"`query` of {len(query)} tokens{delimiter} and `items[{lengths.index(longest)}]` of "
        f"{longest} tokens make {total} tokens, at most {limits.max_seq_len} are allowed; "
        "shorten one of them",
        "items" if len(query) + num_delimiters < limits.max_seq_len else "query",
    )


def _checked_tokens(
    rows: Sequence[Tokens],
    place: Callable[[int], str],
    param: str,
    vocab_size: int,
    delimiter: int | None = None,
) -> TokenLists:
    """`rows` in one array; raises for the first id outside the vocabulary or the delimiter."""
    with contextlib.suppress(OverflowError):  # an id beyond 32 bits, which is found below
        lists = TokenLists.of(rows)
        if _all_fine(lists.tokens, vocab_size, delimiter):
            return lists
    for row, ids in enumerate(rows):
        for index, token in enumerate(ids):
            where = f"{place(row)}[{index}]"
            if token < 0:
                raise RequestError(
                    "token_id_negative",
                    f"`{where}` is {_number(token)}, expected 0 to {vocab_size - 1}",
                    param,
                )
            if token >= vocab_size:
                raise RequestError(
                    "token_id_exceeds_vocab",
                    f"`{where}` is {_number(token)}, expected 0 to {vocab_size - 1} (the model's "
                    f"vocabulary has {vocab_size} tokens)",
                    param,
                )
            if token == delimiter:
                raise RequestError(
                    "delimiter_in_input",
                    f"`{where}` is the server's delimiter, token id {delimiter}; the server "
                    "inserts it between query and item, so leave it out",
                    param,
                )
    raise AssertionError("no id is at fault")


def _all_fine(ids: Int32Array, vocab_size: int, delimiter: int | None) -> bool:
    """Whether every id is in the vocabulary and none is the delimiter."""
    if not ids.size:
        return True
    in_vocabulary = ids.min() >= 0 and ids.max() < vocab_size
    return bool(in_vocabulary and (delimiter is None or not (ids == delimiter).any()))


def _as_list(value: Any) -> list[Any] | None:
    """`value` as a list if it is a list, tuple or array; else None."""
    if isinstance(value, list):
        return value
    if isinstance(value, tuple):
        return list(value)
    if hasattr(value, "tolist") and hasattr(value, "__len__"):  # arrays of any library
        try:
            values = value.tolist()
        except (TypeError, ValueError):
            return None
        return values if isinstance(values, list) else None
    return None


def _no_tokenizer(name: str) -> str:
    return f"`{name}` is text but the model has no tokenizer.json; send token ids"


def _number(value: int) -> str:
    """`value` in digits, or its size in bits if it has very many digits."""
    return str(value) if abs(value) < 10**30 else f"a number of {value.bit_length()} bits"


def _kind(value: Any) -> str:
    """The value's type in JSON terms, for messages."""
    if isinstance(value, bool):
        return f"a boolean ({str(value).lower()})"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int):
        return "an integer"
    if isinstance(value, float):
        return f"a float ({value:g})"
    names = {dict: "an object", list: "a list", tuple: "a list", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
