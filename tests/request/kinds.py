"""Small tokenizers of the kinds that models have, and texts that are hard for them."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CONTROL = ("<|begin|>", "<|im_start|>", "<|im_end|>", "[SEP]")
# The patterns of the published tokenizers of Qwen2, Llama 3, DeepSeek and GPT-4o.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"\s+$", r"[一-龥ࠀ-一가-퟿]+")
_TEXT = (
    "query: quiet hotel near the station item: brass lamp for the desk match: yes no\n"
    "Does the passage answer the question? It's why we don't say they'll: 12 345 a1b2 (x) \"y\"\n"
    "  def f(x):\r\n\treturn x  # 日本語のテキスト，你好。 naïve façade Übung e\u0301 \n\n"
    "the documents are relevant... <b>stand</b> by :: -- == https://example.org/a_b?c=d&e=f\n"
)


def _control(special: bool = True) -> list[AddedToken]:
    return [AddedToken(t, special=special, normalized=False) for t in CONTROL]


def _bpe(pre_tokenizer: Any, normalizer: Any = None) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizer
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([_TEXT] * 20, trainer)
    made.add_special_tokens(_control())
    made.add_tokens(
        [AddedToken("<think>", normalized=False), AddedToken("zebra", single_word=True)]
    )
    return made


def _split(*patterns: str) -> pre_tokenizers.Sequence:
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _qwen() -> tokenizers.Tokenizer:
    return _bpe(_split(QWEN2), normalizers.NFC())


def _llama3() -> tokenizers.Tokenizer:
    return _begun(_bpe(_split(LLAMA3)))


def _gpt4o() -> tokenizers.Tokenizer:
    return _bpe(_split(GPT4O))


def _gpt2_digits() -> tokenizers.Tokenizer:
    """As SmolLM's: single digits, then GPT-2's pattern."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return _bpe(pre_tokenizers.Sequence([digits, byte_level]))


def _gpt2_prefix() -> tokenizers.Tokenizer:
    """As RoBERTa's: a space before the text, and an end token after it."""
    made = _bpe(pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True))
    made.add_special_tokens([AddedToken("<mask>", special=True, lstrip=True, rstrip=True)])
    return _begun(made, end="[SEP]")


def _deepseek() -> tokenizers.Tokenizer:
    return _bpe(_split(*DEEPSEEK, r"\p{N}+"))


def _unknown() -> tokenizers.Tokenizer:
    """A way to split that nobody has analysed."""
    return _bpe(_split(r"(?<=[aeiou])\s?\w|\w+(?=\W\w)|\W"))


def _sentencepiece(pre_tokenizer: Any, normalizer: Any) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    made.train_from_iterator(_TEXT.splitlines() * 20, trainer)
    rebuilt = tokenizers.Tokenizer.from_str(made.to_str())
    rebuilt = tokenizers.Tokenizer(rebuilt.model)
    if normalizer is not None:
        rebuilt.normalizer = normalizer
    if pre_tokenizer is not None:
        rebuilt.pre_tokenizer = pre_tokenizer
    rebuilt.add_special_tokens(_control())
    return _begun(rebuilt)


def _llama2() -> tokenizers.Tokenizer:
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return _sentencepiece(None, normalizers.Sequence(spaces))


def _metaspace() -> tokenizers.Tokenizer:
    first = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _sentencepiece(first, None)


def _unigram() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(_TEXT.splitlines() * 20, trainer)
    made.add_special_tokens(_control())
    return made


def _wordpiece() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[UNK]"], show_progress=False
    )
    made.train_from_iterator([_TEXT] * 20, trainer)
    made.add_special_tokens(_control())
    return made


def _begun(made: tokenizers.Tokenizer, end: str = "") -> tokenizers.Tokenizer:
    frame = ["<|begin|>", "$A", *([end] if end else [])]
    ids = [(token, made.token_to_id(token)) for token in frame if token != "$A"]
    made.post_processor = processors.TemplateProcessing(single=frame, special_tokens=ids)
    return made


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "qwen": _qwen,
    "llama3": _llama3,
    "gpt4o": _gpt4o,
    "gpt2-digits": _gpt2_digits,
    "gpt2-prefix": _gpt2_prefix,
    "deepseek": _deepseek,
    "llama2": _llama2,
    "metaspace": _metaspace,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
    "unknown": _unknown,
}


@cache
def _serialized(kind: str) -> str:
    return KINDS[kind]().to_str()


def backend_of(kind: str) -> tokenizers.Tokenizer:
    """A new tokenizer of a kind."""
    return tokenizers.Tokenizer.from_str(_serialized(kind))


FRAGMENTS = (
    *(" ", "  ", "     ", "\n", "\n\n", "\r\n", "\r", "\t", "\u00a0", "\u3000", "\u2028", "\x00"),
    *("a", "the", " the", "sta", "tion", "nd by", "Yes", "NO", "don't", "'s", "'LL", "'", "zebra"),
    *("1", "123", "45678", "½", "٣", ".", ",", ":", "...", "::", "(", ")", '"', "-", "_", "/"),
    *(
        "<",
        "=",
        ">",
        "<|im_end|>",
        "<|im_",
        "end|>",
        "<|begin|>",
        "[SEP]",
        "<th",
        "<think>",
        "<mask>",
    ),
    *(
        "你好",
        "，",
        "。",
        "日本語",
        "テキスト",
        "각",
        "\u1100",
        "\u1161",
        "\u11a8",
        "שלום",
        "مرحبا",
        "ไทย",
    ),
    *("e\u0301", "\u0301", "\u0338", "é", "ﬁ", "ß", "İ", "ſ", "Å", "①", "㍿", "\u0d4e", "\u0600"),
    *(
        "👍",
        "👨\u200d👩\u200d👧",
        "\u200d",
        "\u200b",
        "\ufeff",
        "\ufdd0",
        "\ufdef",
        "\ufffd",
        "▁",
        "Ġ",
    ),
)


def hard_texts(count: int = 200, seed: int = 7) -> list[tuple[str, str]]:
    """Texts of every kind of difficulty, each cut in two at a random place."""
    chosen = random.Random(seed)
    texts = [fragment * times for fragment in FRAGMENTS for times in (2, 40)]
    while len(texts) < count:
        length = chosen.randint(1, 30)
        texts.append("".join(chosen.choices(FRAGMENTS, k=length)))
    cuts = [chosen.randint(0, len(text)) for text in texts]
    return [(text[:cut], text[cut:]) for text, cut in zip(texts, cuts, strict=True)][:count]
