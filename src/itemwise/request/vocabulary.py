"""Tokenizers from a vocabulary and its merges, for checkpoints without a `tokenizer.json`.

A vocabulary alone does not say how text is cut before it is merged: that goes by the tokenizer's
kind. The patterns are published with the models, in `tokenizer.json` or in their tokenizers' code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from itemwise.errors import CheckpointError, brief

if TYPE_CHECKING:
    import tokenizers

VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Cut(NamedTuple):
    """How a kind of byte-level tokenizer cuts text into the pieces that are merged.

    Attributes:
        pattern: regular expression of a piece; None for GPT-2's own.
        single_digits: every digit is a piece, before GPT-2's pattern.
        nfc: text is brought into Unicode's composed form first.
        ignore_merges: a piece that is in the vocabulary is one token whatever the merges.
        begin: sequences begin with the begin token, unless something says otherwise.
    """

    pattern: str | None = None
    single_digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    begin: bool = False


GPT2 = Cut()
QWEN2 = Cut(_WORDS + r"\p{N}" + _REST, nfc=True)
LLAMA3 = Cut(_WORDS + r"\p{N}{1,3}" + _REST, ignore_merges=True, begin=True)
SMOLLM = Cut(single_digits=True)
_BY_CLASS = {"Qwen2Tokenizer": QWEN2, "GPT2Tokenizer": GPT2}


def byte_level(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], cut: Cut
) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer, without added tokens.

    Args:
        vocab: id by token, in GPT-2's spelling of bytes.
        merges: pairs of tokens, the first to be merged first.
        cut: how text is cut before.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    bpe = models.BPE(dict(vocab), list(merges), ignore_merges=cut.ignore_merges)
    made = Tokenizer(bpe)
    steps: list[pre_tokenizers.PreTokenizer] = []
    if cut.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(cut.pattern), "isolated"))
    if cut.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    whole = cut.pattern is None
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=whole))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if cut.nfc:
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    return made


def from_vocabulary_files(folder: Path) -> tokenizers.Tokenizer | None:
    """The tokenizer of `vocab.json` and `merges.txt`; None if the folder has not both.

    Its kind and its special tokens are those of `tokenizer_config.json`.

    Raises:
        CheckpointError: a file is damaged, or the kind is not known.
    """
    paths = folder / VOCAB_FILE, folder / MERGES_FILE
    if not all(path.is_file() for path in paths):
        return None
    config = _read_json(folder / "tokenizer_config.json")
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if kind not in _BY_CLASS:
        raise CheckpointError(
            f"`{folder}` has {VOCAB_FILE} and {MERGES_FILE} but no tokenizer.json, and its "
            f"`tokenizer_class` is {kind!r}, expected one of {', '.join(_BY_CLASS)}: save the "
            "tokenizer with transformers, which writes tokenizer.json"
        )
    try:
        lines = paths[1].read_text(encoding="utf-8").splitlines()
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        merges = [(left, right) for left, right in pairs]
        made = byte_level(_read_json(paths[0]), merges, _BY_CLASS[kind])
        _add_tokens(made, config)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(
            f"`{paths[0]}` and `{paths[1]}` cannot be read as a tokenizer ({brief(error)}): "
            "download them again"
        ) from error
    return made


def _add_tokens(made: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Adds the tokens that are never cut, by id, then those that are only named."""
    from tokenizers import AddedToken

    listed = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda one: int(one[0]))
    fields = ("content", "lstrip", "rstrip", "normalized", "single_word", "special")
    for _, token in listed:
        made.add_tokens([AddedToken(**{k: v for k, v in token.items() if k in fields})])
    named = [config.get(f"{name}_token") for name in ("bos", "eos", "unk", "pad")]
    named += config.get("additional_special_tokens") or []
    texts = [one["content"] if isinstance(one, dict) else one for one in named if one]
    made.add_special_tokens(list(dict.fromkeys(texts)))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"`{path}` cannot be read as JSON ({brief(error)}): download it again"
        ) from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"`{path}` is not a JSON object: download it again")
    return raw
