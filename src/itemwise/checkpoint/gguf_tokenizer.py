"""The tokenizer of a GGUF file in the form of `tokenizer.json` and `tokenizer_config.json`.

A GGUF file names its tokenizer's kind; what the kind does is a fact of llama.cpp's source
(`src/llama-vocab.cpp`) and of the `tokenizer.json` that the models were published with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from itemwise.errors import CheckpointError
from itemwise.request.vocabulary import GPT2, LLAMA3, QWEN2, SMOLLM, byte_level

if TYPE_CHECKING:
    import tokenizers

_CUTS = {
    "default": GPT2,
    "gpt-2": GPT2,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "smollm": SMOLLM,
}
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # of `tokenizer.ggml.token_type`
_SPACE = "\u2581"  # stands for a space in SentencePiece's tokens


def build_tokenizer(fields: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer that a file's fields describe.

    Raises:
        CheckpointError: it is of an unknown kind, or fields are missing.
    """
    kind, pre = _field(fields, "model"), str(fields.get("tokenizer.ggml.pre", "default"))
    tokens: Sequence[str] = _field(fields, "tokens")
    if kind == "gpt2" and pre in _CUTS:
        pairs = [line.split(" ", 1) for line in _field(fields, "merges")]
        vocab = {token: number for number, token in enumerate(tokens)}
        made = byte_level(vocab, [(left, right) for left, right in pairs], _CUTS[pre])
        begins = _CUTS[pre].begin
    elif kind == "llama":
        made, begins = _sentencepiece(fields, tokens), True
    else:
        known = ", ".join(_CUTS)
        raise CheckpointError(
            f"its tokenizer is {kind!r} of kind {pre!r}, expected 'llama', or 'gpt2' of one of the "
            f"kinds {known}"
        )
    _add_tokens(made, tokens, fields.get("tokenizer.ggml.token_type") or [])
    _frame(made, tokens, fields, begins)
    return made


def tokenizer_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Contents of `tokenizer_config.json`: the special tokens' names, and the chat template."""
    tokens = _field(fields, "tokens")
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for name, theirs in names.items():
        number = fields.get(f"tokenizer.ggml.{theirs}_token_id")
        if number is not None and number < len(tokens):
            config[f"{name}_token"] = tokens[number]
    if "tokenizer.chat_template" in fields:
        config["chat_template"] = fields["tokenizer.chat_template"]
    return config


def _sentencepiece(fields: Mapping[str, Any], tokens: Sequence[str]) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: of two neighbours, those merge first whose token has the best score."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = _field(fields, "scores")
    vocab = {token: number for number, token in enumerate(tokens)}
    found = [
        (-scores[number], vocab[token[:cut]], vocab[token[cut:]], token[:cut], token[cut:])
        for number, token in enumerate(tokens)
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    merges = [(left, right) for *_, left, right in sorted(found)]
    unknown = tokens[fields.get("tokenizer.ggml.unknown_token_id", 0)]
    bpe = models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    made = Tokenizer(bpe)
    replace = normalizers.Replace(" ", _SPACE)
    prefixed = fields.get("tokenizer.ggml.add_space_prefix", True)
    steps = [normalizers.Prepend(_SPACE), replace] if prefixed else [replace]
    made.normalizer = normalizers.Sequence(steps)
    ends = [decoders.Strip(" ", 1, 0)] if prefixed else []
    decode = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    made.decoder = decoders.Sequence(decode)
    return made


def _add_tokens(made: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    from tokenizers import AddedToken

    added = [
        AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, types, strict=False)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    made.add_tokens(added)


def _frame(
    made: tokenizers.Tokenizer, tokens: Sequence[str], fields: Mapping[str, Any], begins: bool
) -> None:
    """Begin and end tokens of a sequence, where the file or the tokenizer's kind has them."""
    from tokenizers import processors

    wanted = {
        "bos": fields.get("tokenizer.ggml.add_bos_token", begins),
        "eos": fields.get("tokenizer.ggml.add_eos_token", False),
    }
    frame = {}
    for name, is_wanted in wanted.items():
        number = fields.get(f"tokenizer.ggml.{name}_token_id")
        if is_wanted and number is not None:
            frame[name] = tokens[number], int(number)
    if not frame:
        return
    single = [*([frame["bos"][0]] if "bos" in frame else []), "$A"]
    single += [frame["eos"][0]] if "eos" in frame else []
    made.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=list(dict.fromkeys(frame.values()))
    )


def _field(fields: Mapping[str, Any], name: str) -> Any:
    found = fields.get(f"tokenizer.ggml.{name}")
    if found is None:
        raise CheckpointError(f"it has no `tokenizer.ggml.{name}`")
    return found
