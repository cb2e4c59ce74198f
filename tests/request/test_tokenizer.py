"""Text to ids: special tokens for queries alone, nothing cut, nothing padded."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from itemwise.errors import CheckpointError, RequestError
from itemwise.request.tokenizer import MAX_LABEL_CHARS, TOKENIZER_FILE, Tokenizer

WORDS = ["<s>", "a", "b", "yes", "no"]
START, A, B, YES, NO = range(5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose tokenizer knows five words, and asks for truncation and padding."""
    vocab = {word: id_ for id_, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", START)]
    )
    backend.add_special_tokens(["<s>"])
    backend.enable_truncation(2)
    backend.enable_padding(length=7)
    backend.save(str(tmp_path / TOKENIZER_FILE))
    return tmp_path


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    found = Tokenizer.from_folder(folder)
    assert found is not None
    return found


def test_from_folder_is_none_without_a_tokenizer(tmp_path: Path) -> None:
    assert Tokenizer.from_folder(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": {"type": "Magic"}}'])
def test_from_folder_names_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / TOKENIZER_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="tokenizer.json` cannot be read as a tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_encode_adds_special_tokens_and_neither_truncates_nor_pads(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a b a b a b a b a b") == [START, *[A, B] * 5]
    assert tokenizer.encode("a") == [START, A]
    assert tokenizer.encode("") == [START]


def test_encode_batch_adds_nothing_and_neither_truncates_nor_pads(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode_batch(["a", "", "b a b a b a b a b a", "no"])
    assert encoded == [[A], [], [B, A] * 5, [NO]]
    assert tokenizer.encode_batch([]) == []


def test_encode_batch_encodes_each_item_as_it_would_alone(tokenizer: Tokenizer) -> None:
    items = ["a b", "yes", "no no no"]
    assert tokenizer.encode_batch(items) == [tokenizer.encode_batch([item])[0] for item in items]


def test_label_id_is_the_one_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.label_id("yes") == YES
    assert tokenizer.label_id("no") == NO


def test_texts_of_all_requests_take_turns_on_few_threads(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, seen = tokenizer._encode_piece, set()

    def noted(texts: list[str]) -> list[list[int]]:
        seen.add(threading.current_thread().name)
        return encode(texts)

    monkeypatch.setattr(tokenizer, "_encode_piece", noted)
    with ThreadPoolExecutor(9) as requests:
        assert len(set(map(tuple, requests.map(tokenizer.encode, ["yes"] * 99)))) == 1
    assert {name.rstrip("0123456789") for name in seen} == {"itemwise-text_"}
    assert len(seen) <= max(2, os.cpu_count() or 1)


def test_label_that_is_too_long_is_not_encoded(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_labels(["yes", "yes" * MAX_LABEL_CHARS]) == [[YES], []]


@pytest.mark.parametrize(
    ("label", "became"),
    [
        ("yes no", r"2 tokens: 'yes' \(3\), 'no' \(4\), expected one"),
        ("", "0 tokens, expected one"),
    ],
)
def test_label_id_says_what_a_label_became(tokenizer: Tokenizer, label: str, became: str) -> None:
    with pytest.raises(RequestError, match=f"`labels` has '{label}', which becomes {became}") as e:
        tokenizer.label_id(label)
    assert (e.value.code, e.value.param) == ("label_not_one_token", "labels")


def test_vocab_size_counts_added_tokens(folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    backend.add_special_tokens(["<extra>"])
    assert Tokenizer(backend).vocab_size == len(WORDS) + 1
