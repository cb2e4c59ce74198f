from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from itemwise.checkpoint.shapes import model_dict
from itemwise.errors import ConfigError
from itemwise.validation.workloads import (
    DEFAULT,
    DEMO_QUERY,
    demo_workload,
    load_workload,
    workload_for,
    workload_of,
)

FIELDS: dict[str, Any] = {"query": [1, 2], "items": [[3], [4, 5]], "labels": [7, 8], "delimiter": 9}


def test_default_workload_is_the_runbooks() -> None:
    assert DEFAULT.query == (1957, 1437, 25975, 25)
    assert DEFAULT.items[1] == (1096, 374, 17478, 323, 38123, 13)
    assert (DEFAULT.labels, DEFAULT.delimiter) == ((9834, 902), 151643)
    assert DEFAULT.same_length_item == (1097, 374, 17478, 323, 38123, 13)
    assert DEFAULT.changed_length_item == (1096, 374, 17478, 323, 38123, 13, 13)
    assert DEFAULT.repeated(7)[5:] == [DEFAULT.items[0], DEFAULT.items[1]]


def test_mutation_avoids_the_delimiter_and_unknown_ids() -> None:
    before_delimiter = workload_of("f", {**FIELDS, "items": [[3], [8, 12]], "labels": [1, 2]})
    assert before_delimiter.same_length_item == (7, 12)
    assert workload_of("f", FIELDS | {"items": [[3], [5]]}).same_length_item == (4,)


def test_random_ids_leave_the_delimiter_out() -> None:
    workload = workload_of("f", {**FIELDS, "items": [[3], [40]], "delimiter": 2, "query": [1]})
    drawn = workload.random_ids(20, 50, seed=3)
    assert drawn == workload.random_ids(20, 50, seed=3)
    assert {token for ids in drawn for token in ids} == {*range(41)} - {2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": []}, "`query` is"),
        ({"items": [[1]]}, "`items` is wrong, expected two or more lists"),
        ({"items": [[1], []]}, "`items` is wrong, expected two or more lists"),
        ({"labels": [7, 7]}, "`labels` has a label twice"),
        ({"labels": [True]}, "`labels` is"),
        ({"delimiter": "x"}, "`delimiter` is 'x'"),
        ({"delimiter": 3}, "`delimiter` occurs in the query or an item"),
        ({"mutated_index": 2}, "`mutated_index` is 2, expected 0 to 1"),
        ({"apply_softmax": 1}, "`apply_softmax` is 1"),
        ({"lables": [1]}, "`lables` is not a known field"),
    ],
)
def test_faults_of_a_workload_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        workload_of("file", {**FIELDS, **change})


def test_workload_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "workload.json"
    path.write_text(json.dumps({**FIELDS, "apply_softmax": False, "mutated_index": 0}))
    workload = load_workload(str(path))
    assert (workload.items, workload.apply_softmax) == (((3,), (4, 5)), False)
    assert workload.changed_length_item == (3, 3)
    assert load_workload("default") is DEFAULT


def test_small_vocabularies_get_the_demo_workload(
    tmp_path: Path, make_checkpoint: Callable[[str], Path]
) -> None:
    workload = workload_for(make_checkpoint("tiny-qwen3"))
    assert workload.name == "demo"
    assert workload.max_id < 256
    assert workload.delimiter not in workload.query
    for name, vocab_size in (("large", 151936), ("tiny", 40)):
        config = model_dict("tiny-qwen3", vocab_size=vocab_size)
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    assert workload_for(tmp_path / "large") is DEFAULT
    with pytest.raises(ConfigError, match="--workload FILE"):
        workload_for(tmp_path / "tiny")


def test_demo_workload_uses_the_models_tokenizer(tmp_path: Path) -> None:
    words = ["<end>", *re.findall(r"\w+|[:?]", f"{DEMO_QUERY} yes no red")]
    vocabulary = {word: i for i, word in enumerate(["[UNK]", *words])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    workload = demo_workload(tmp_path)
    assert workload.query[:2] == (vocabulary["Does"], vocabulary["this"])
    assert workload.labels == (vocabulary["yes"], vocabulary["no"])
    assert workload.delimiter == vocabulary["<end>"]
