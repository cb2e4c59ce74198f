"""Folders with a vocabulary and merges alone give the tokens that transformers gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import pre_tokenizers, trainers
from tokenizers.models import BPE

from itemwise.errors import CheckpointError
from itemwise.request.tokenizer import Tokenizer
from itemwise.request.vocabulary import LLAMA3, QWEN2, byte_level

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")
TEXTS = (
    "It's 2026: 12345 o'clock,  said\n\n the\tDOG's owner. ",
    "naïve cafe\u0301 日本語 \U0001f600 \u00a0x",
    "<|im_start|>user\nhi<|im_end|><|endoftext|> <|object|>",
    " ",
    "",
)


def write(folder: Path, **config: Any) -> None:
    made = tokenizers.Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*TEXTS, "the dog's owner said 12 123"] * 20, trainer)
    made.model.save(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def added(*texts: str) -> dict[str, Any]:
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {
        str(400 + number): {"content": text, "special": number < 2, **flags}
        for number, text in enumerate(texts)
    }


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"},
        {
            "tokenizer_class": "Qwen2TokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "added_tokens_decoder": added("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|obj"),
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        },
        {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"},
    ],
    ids=["qwen2", "qwen2-added", "gpt2"],
)
def test_ids_are_those_of_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write(tmp_path, **config)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    assert ours is not None
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text


def test_an_unknown_kind_is_named(tmp_path: Path) -> None:
    write(tmp_path, tokenizer_class="OtherTokenizer")
    with pytest.raises(
        CheckpointError, match="`tokenizer_class` is 'OtherTokenizer', expected one of Qwen"
    ):
        Tokenizer.from_folder(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, tokenizer_class="Qwen2Tokenizer")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na\n")
    with pytest.raises(CheckpointError, match=r"merges.txt` cannot be read as a tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_a_vocabulary_without_merges_is_no_tokenizer(tmp_path: Path) -> None:
    write(tmp_path, tokenizer_class="Qwen2Tokenizer")
    (tmp_path / "merges.txt").unlink()
    assert Tokenizer.from_folder(tmp_path) is None


def test_a_piece_of_the_vocabulary_is_one_token_where_the_kind_says_so() -> None:
    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}
    merges = [("a", "b")]
    assert byte_level(vocab, merges, LLAMA3).encode("abc").ids == [4]
    assert byte_level(vocab, merges, QWEN2).encode("abc").ids == [3, 2]
