"""GGUF files become the folders that they were made of."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itemwise.checkpoint.gguf_file import convert
from itemwise.checkpoint.locate import locate
from itemwise.checkpoint.read import read_config, read_model
from itemwise.errors import CheckpointError, UnsupportedModelError
from itemwise.models.config import ModelConfig
from itemwise.models.layers import rope_frequencies
from itemwise.request.tokenizer import Tokenizer
from tests.checkpoint.by_transformers import build
from tests.checkpoint.gguf_files import SCALES, alternate, random_blocks, tokenizer_fields, write

gguf = pytest.importorskip("gguf")
pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
    pytest.mark.usefixtures("one_torch_thread"),
]
WIDE: dict[str, Any] = {"hidden_size": 64}  # whole blocks of the quantised types
# No tensor, one field `a`: an array of 2**60 bytes.
ENDLESS_ARRAY = struct.pack("<4sIQQQsIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 0, 1 << 60) + bytes(50)
TEXTS = (
    "It's 2026: 12345 o'clock,  said\n\n the\tDOG's owner. ",
    "naïve cafe\u0301 日本語 \U0001f600 \u00a0x",
    "<|im_start|>user\nhi<|im_end|>",
    " ",
    "",
)


def tensors(folder: Path) -> dict[str, Any]:
    """All tensors of a folder, as float32."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
    return found


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llama", {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 24}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
    ],
)
def test_a_file_gives_back_the_model_it_was_made_of(
    family: str, more: dict[str, Any], tmp_path: Path
) -> None:
    model = build(family, **WIDE, rms_norm_eps=1e-5, **more)
    model.save_pretrained(tmp_path / "original")
    write(tmp_path / "model.gguf", model)
    convert(tmp_path / "model.gguf", tmp_path / "converted")
    expected, found = tensors(tmp_path / "original"), tensors(tmp_path / "converted")
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert read_model(tmp_path / "converted") == read_model(tmp_path / "original")


def test_a_rerankers_head_is_read(tmp_path: Path) -> None:
    labels = {0: "yes", 1: "no"}
    model = build("qwen3", "SequenceClassification", **WIDE, id2label=labels)
    fields = {"qwen3.classifier.output_labels": ["yes", "no"]}
    write(tmp_path / "model.gguf", model, fields=fields)
    convert(tmp_path / "model.gguf", tmp_path / "converted")
    found = tensors(tmp_path / "converted")["score.weight"]
    np.testing.assert_array_equal(found, model.score.weight.detach().numpy())
    assert read_model(tmp_path / "converted").num_labels == 2
    raw = json.loads((tmp_path / "converted/config.json").read_text())
    assert raw["id2label"] == {"0": "yes", "1": "no"}


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_matrices_of_every_type_keep_their_values(kind: str, tmp_path: Path) -> None:
    model = build("llama", **WIDE)
    write(tmp_path / "model.gguf", model, kind)
    convert(tmp_path / "model.gguf", tmp_path / "converted")
    name = "model.layers.1.self_attn.q_proj.weight"
    one = gguf.GGMLQuantizationType[kind]
    original = model.state_dict()[name].numpy()
    stored = gguf.dequantize(gguf.quantize(alternate(original, 4), one), one)
    found = tensors(tmp_path / "converted")[name]
    np.testing.assert_array_equal(alternate(found, 4), stored)
    assert 0 < np.abs(found - original).max() < 0.2 * np.abs(original).max()
    if kind.startswith("Q"):
        convert(tmp_path / "model.gguf", tmp_path / "rounded", dtype="bfloat16")
        rounded = tensors(tmp_path / "rounded")[name]
        np.testing.assert_allclose(rounded, found, rtol=2**-8)
        assert (rounded != found).any()


@pytest.mark.parametrize("kind", SCALES)
def test_k_types_are_read(kind: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}
    model = build("llama", hidden_size=256, intermediate_size=256, **sizes)
    write(tmp_path / "model.gguf", model, kind)
    convert(tmp_path / "model.gguf", tmp_path / "converted")
    found = tensors(tmp_path / "converted")
    one = gguf.GGMLQuantizationType[kind]
    name = "model.layers.1.self_attn.q_proj.weight"
    stored = gguf.dequantize(random_blocks(found[name].shape, kind), one)
    assert np.isfinite(stored).all()
    assert len(np.unique(stored)) > 32
    np.testing.assert_array_equal(alternate(found[name], 4), stored)
    name = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_array_equal(
        found[name], gguf.dequantize(random_blocks(found[name].shape, kind), one)
    )


@pytest.mark.parametrize("factor", [8.0, 32.0, 5.0])
def test_stretched_frequencies_of_llama_3_are_recognised(factor: float, tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = build("llama", **WIDE, rope_parameters=rope, max_position_embeddings=131072)
    config = ModelConfig.from_hf(model.config.to_dict())
    plain = ModelConfig.from_hf(
        model.config.to_dict() | {"rope_parameters": {"rope_theta": 500000.0}}
    )
    divisors = rope_frequencies(plain) / rope_frequencies(config)
    path = tmp_path / "model.gguf"
    write(path, model, tensors={"rope_freqs.weight": divisors.astype(np.float32)})
    if factor == 5.0:
        with pytest.raises(UnsupportedModelError, match="none of Llama 3's"):
            convert(path, tmp_path / "converted")
        return
    convert(path, tmp_path / "converted")
    assert read_config(tmp_path / "converted").rope_scaling == config.rope_scaling


def byte_level_tokenizer(kind: str) -> Any:
    """A tokenizer as the published `tokenizer.json` of a kind has it, trained on a few words."""
    from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    digits = {"qwen2": r"\p{N}", "llama-bpe": r"\p{N}{1,3}"}.get(kind)
    made = Backend(BPE(ignore_merges=kind == "llama-bpe"))
    if kind == "qwen2":
        made.normalizer = normalizers.NFC()
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=digits is None)
    steps: list[Any] = [bytes_alone]
    if digits:
        words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        steps.insert(0, pre_tokenizers.Split(Regex(words + digits + rest), "isolated"))
    if kind == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*TEXTS, "12 123 1234 12345 it's the DOG's 's"] * 20, trainer)
    made.add_tokens([AddedToken("owner", normalized=False)])
    return made


@pytest.mark.parametrize("kind", ["gpt-2", "qwen2", "llama-bpe", "smollm"])
def test_tokenizers_cut_as_the_published_ones(kind: str, tmp_path: Path) -> None:
    theirs = byte_level_tokenizer(kind)
    fields = tokenizer_fields(theirs, kind, bos_token_id=1, add_bos_token=False)
    fields["tokenizer.chat_template"] = "{{ messages }}"
    write(tmp_path / "model.gguf", build("llama", **WIDE, num_hidden_layers=1), fields=fields)
    convert(tmp_path / "model.gguf", tmp_path / "converted")
    ours = Tokenizer.from_folder(tmp_path / "converted")
    assert ours is not None
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text).ids, text
    config = json.loads((tmp_path / "converted/tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ messages }}"
    assert config["bos_token"] == "<|im_start|>"


@pytest.mark.parametrize(
    ("kind", "more", "begin"),
    [
        ("llama-bpe", {}, [1]),
        ("llama-bpe", {"add_bos_token": False}, []),
        ("qwen2", {}, []),
        ("qwen2", {"add_bos_token": True}, [1]),
    ],
)
def test_begin_tokens_are_those_of_the_kind(
    kind: str, more: dict[str, Any], begin: list[int], tmp_path: Path
) -> None:
    theirs = byte_level_tokenizer(kind)
    fields = tokenizer_fields(theirs, kind, bos_token_id=1, **more)
    write(tmp_path / "model.gguf", build("llama", **WIDE, num_hidden_layers=1), fields=fields)
    convert(tmp_path / "model.gguf", tmp_path / "converted")
    ours = Tokenizer.from_folder(tmp_path / "converted")
    assert ours is not None
    assert ours.encode("the dog") == begin + theirs.encode("the dog").ids


def test_sentencepiece_merges_by_score(tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "c", "ab", "bc", "\u2581a", "abc"]
    scores = [0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -9.0, -3.0, -1.0, -4.0, -2.0]
    pieces += [f"<0x{n:02X}>" for n in range(256)]
    scores += [0.0] * 256
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * 8 + [6] * 256,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    write(tmp_path / "model.gguf", build("llama", **WIDE, num_hidden_layers=1), fields=fields)
    convert(tmp_path / "model.gguf", tmp_path / "converted")
    ours = Tokenizer.from_folder(tmp_path / "converted")
    assert ours is not None
    names = dict(enumerate(pieces))
    # "bc" comes first, its score is the best; then "a" and "bc" are "abc".
    assert [names[i] for i in ours.encode("abc")] == ["<s>", "\u2581", "abc"]
    assert [names[i] for i in ours.encode("ab a")] == ["<s>", "\u2581", "ab", "\u2581a"]
    assert [names[i] for i in ours.encode("é</s>")][2:] == ["<0xC3>", "<0xA9>", "</s>"]


def test_a_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "my model.gguf"
    write(path, build("qwen3", **WIDE))
    folder = locate(str(path))
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert locate(str(path)) == folder
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert [one.name for one in folder.parent.iterdir()] == [folder.name]  # nothing is left over
    write(path, build("qwen3", **WIDE, seed=1))
    assert locate(str(path)) != folder


def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "model.gguf", tmp_path / "made" / "model"
    write(path, build("qwen3", **WIDE))

    def interrupt(_: str, done: int, __: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(path, folder, on_progress=interrupt)
    assert list(folder.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, build("qwen3", **WIDE))
    with pytest.raises(CheckpointError, match="`.*converted` cannot be written"):
        convert(path, path / "converted")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(CheckpointError, match="`.*full` is not empty"):
        convert(path, tmp_path / "full")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as GGUF"),
        (b"GGUF", "cannot be read as GGUF"),
        (b"not a model" * 99, "cannot be read as GGUF.*magic"),
        (b"GGUF\3\0\0\0" + b"\xff" * 16, "cannot be read as GGUF"),
        (ENDLESS_ARRAY, "cannot be read as GGUF.*it ends too early"),
    ],
)
def test_damaged_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "model.gguf", tmp_path / "converted")


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, build("qwen3", **WIDE))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot be read as GGUF"):
        convert(path, tmp_path / "converted")


def test_what_is_not_supported_is_named(tmp_path: Path) -> None:
    path, model = tmp_path / "model.gguf", build("qwen3", **WIDE)
    write(path, model, fields={"qwen3.rope.scaling.type": "yarn"})
    with pytest.raises(UnsupportedModelError, match=r"`qwen3.rope.scaling.type` is 'yarn'"):
        convert(path, tmp_path / "converted")
    write(path, model, tensors={"blk.0.attn_sinks.weight": np.zeros(4, np.float32)})
    with pytest.raises(UnsupportedModelError, match=r"a tensor `blk.0.attn_sinks.weight`"):
        convert(path, tmp_path / "converted")
