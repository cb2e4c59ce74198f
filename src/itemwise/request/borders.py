"""Where a text can be cut so that each part keeps its tokens, whatever the other part is.

A tokenizer takes a text through stages: it finds added tokens, normalises what is between them,
cuts that into pieces, and gives each piece to its model, which knows nothing of the others. There
is a safe border between two characters if no stage looks across the two and one of them (or the
model) always separates them. Each stage answers for a pair of neighbours alone, so what was proved
for a pair holds in every text.

Stages that are not known have no safe borders; texts are then encoded whole.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, Protocol

from itemwise.request.pattern import Pattern, UnknownSyntaxError

if TYPE_CHECKING:
    import tokenizers

Pair = tuple[str, str]

# The patterns that the library's own pre-tokenizers use.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"\w+|[^\w\s]+"
_COMPOSING = {"NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "StripAccents", "BertNormalizer"}
_BY_PAIR = {"Digits", "Punctuation", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"}
_NEVER_COMPOSED = "$+^`|~"  # symbols of ASCII to which no accent can be added, unlike `<=>`


class _UnknownStageError(Exception):
    """A stage of the tokenizer is of a kind that is not analysed."""


class _Stage(Protocol):
    """A stage's answer for two neighbours; None if it may look across them."""

    def __call__(self, pair: Pair) -> tuple[Pair, bool] | None:
        """The neighbours as they leave the stage, and whether it always separates them."""
        ...


class Borders:
    """The safe borders of a tokenizer.

    Args:
        backend: the tokenizer.
        added: contents of its added tokens.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, added: Iterable[tokenizers.AddedToken]
    ) -> None:
        self._backend = backend
        self._known: dict[Pair, bool] = {}
        tokens = list(added)
        try:
            self._stages = [
                _added_stage(tokens, lambda text: text),
                *_normalizer_stages(backend.normalizer),
                _added_stage([t for t in tokens if t.normalized], _normalize(backend)),
                *_pre_tokenizer_stages(backend.pre_tokenizer),
            ]
        except (_UnknownStageError, UnknownSyntaxError):
            self._stages = []

    @property
    def known(self) -> bool:
        """Whether the tokenizer has safe borders at all, as far as is known."""
        return bool(self._stages)

    def is_safe(self, x: str, y: str) -> bool:
        """Whether a text can be cut between the neighbours `x` and `y`.

        Then the tokens of `...x` and, for any text in front, those of `y...` after `x`, are the
        same together and apart.
        """
        found = self._known.get((x, y))
        if found is None:
            found = self._known[x, y] = self._prove((x, y))
        return found

    def _prove(self, pair: Pair) -> bool:
        certain = False
        if not self._stages or pair[0].isspace():  # spaces may be stripped at the ends of a text
            return False
        for stage in self._stages:
            passed = stage(pair)
            if passed is None:
                return False
            pair, here = passed
            certain = certain or here
        return certain or self._model_separates(pair)

    def _model_separates(self, pair: Pair) -> bool:
        """Whether no token of the model's has the pair inside, so that nothing merges over it."""
        return self._merged_pairs is not None and (
            pair not in self._merged_pairs
            and all(self._backend.model.token_to_id(char) is not None for char in pair)
        )

    @cached_property
    def _merged_pairs(self) -> set[Pair] | None:
        """Neighbours within a token, for BPE on text as it is; None for other models."""
        import tokenizers

        model, pre_tokenizer = self._backend.model, self._backend.pre_tokenizer
        if not isinstance(model, tokenizers.models.BPE) or model.dropout:
            return None
        if model.continuing_subword_prefix or model.end_of_word_suffix:
            return None
        if any(state["type"] == "ByteLevel" for state in _states(pre_tokenizer, "pretokenizers")):
            return None
        vocabulary = self._backend.get_vocab(with_added_tokens=False)
        return set(chain.from_iterable(map(pairwise, vocabulary)))


def _states(component: Any, parts: str) -> Iterator[dict[str, Any]]:
    """The settings of a component, or of each of its parts in order, as in tokenizer.json."""
    if component is None:
        return
    state = json.loads(component.__getstate__())
    todo = [state]
    while todo:
        state = todo.pop(0)
        if state["type"] == "Sequence":
            todo = state[parts] + todo
        else:
            yield state


def _normalize(backend: tokenizers.Tokenizer) -> Callable[[str], str]:
    normalizer = backend.normalizer
    return (lambda text: text) if normalizer is None else normalizer.normalize_str


def _added_stage(tokens: list[tokenizers.AddedToken], spelling: Callable[[str], str]) -> _Stage:
    """Added tokens, which are found in the text before anything else."""
    contents = [spelling(token.content) for token in tokens]
    inside = set(chain.from_iterable(map(pairwise, contents)))
    ends = {content[-1:] for content in contents}  # what follows one is a text of its own

    def stage(pair: Pair) -> tuple[Pair, bool] | None:
        return None if pair in inside or pair[0] in ends else (pair, False)

    return stage


def _normalizer_stages(normalizer: Any) -> Iterator[_Stage]:
    import tokenizers

    for state in _states(normalizer, "normalizers"):
        kind = state["type"]
        if kind in _COMPOSING or kind == "Lowercase":
            part = tokenizers.normalizers.Normalizer
            yield _steady_stage(_rebuilt(part, state), composing=kind in _COMPOSING)
        elif kind == "Replace" and set(state["pattern"]) == {"String"}:
            yield _replace_stage(state["pattern"]["String"], state["content"])
        elif kind not in ("Prepend", "Strip"):  # these two touch the ends of a text alone
            raise _UnknownStageError(kind)


def _rebuilt(kind: Any, state: dict[str, Any]) -> Any:
    """The component of some settings."""
    import tokenizers

    holder = tokenizers.Tokenizer(tokenizers.models.BPE())
    whole = json.loads(holder.to_str())
    name = "normalizer" if kind is tokenizers.normalizers.Normalizer else "pre_tokenizer"
    whole[name] = state
    return getattr(tokenizers.Tokenizer.from_str(json.dumps(whole)), name)


def _steady_stage(normalizer: Any, *, composing: bool) -> _Stage:
    """A normalizer that treats characters alone, or with accents that belong to them."""

    def stage(pair: Pair) -> tuple[Pair, bool] | None:
        if composing and not (_starts(pair[0]) and _stays(pair[1])):
            return None
        steady = all(normalizer.normalize_str(char) == char for char in pair)
        return (pair, False) if steady else None

    return stage


def _starts(char: str) -> bool:
    """Whether no character before it can be composed with this one."""
    if char.isascii():
        return True
    # Outside these the second parts of compositions are marks, or letters of few scripts.
    return unicodedata.category(char)[0] not in "MC" and not (
        "\u1100" <= char <= "\u11ff" or char >= "\U00010000"
    )


def _stays(char: str) -> bool:
    """Whether it is composed neither with what is before it nor with what is after it."""
    return _starts(char) and (
        unicodedata.category(char)[0] in "PZN" or char.isspace() or char in _NEVER_COMPOSED
    )


def _replace_stage(pattern: str, content: str) -> _Stage:
    def stage(pair: Pair) -> tuple[Pair, bool] | None:
        if pattern not in pair:
            return None if pattern == "" or _holds_across(pattern, pair) else (pair, False)
        if len(content) != 1:
            return None
        x, y = (content if char == pattern else char for char in pair)
        return (x, y), False

    return stage


def _holds_across(pattern: str, pair: Pair) -> bool:
    """Whether a match of a plain text may touch the pair."""
    return any(char in pattern for char in pair)


def _pre_tokenizer_stages(pre_tokenizer: Any) -> Iterator[_Stage]:
    byte_level = False
    for state in _states(pre_tokenizer, "pretokenizers"):
        kind = state["type"]
        if byte_level:
            raise _UnknownStageError(f"{kind} after ByteLevel")
        if kind == "Split":
            yield _split_stage(state)
        elif kind == "ByteLevel":
            byte_level = True
            if state["use_regex"]:
                yield _pattern_stage(_GPT2)
        elif kind == "Whitespace":
            yield _pattern_stage(_WORDS)
        elif kind == "Metaspace":
            yield _metaspace_stage(state)
        elif kind in _BY_PAIR:
            yield _by_pair_stage(state)
        else:
            raise _UnknownStageError(kind)


def _split_stage(state: dict[str, Any]) -> _Stage:
    behavior, inverted, pattern = state["behavior"], state["invert"], state["pattern"]
    if "Regex" in pattern and (behavior == "Isolated" or (behavior == "Removed" and inverted)):
        return _pattern_stage(pattern["Regex"])
    if len(pattern.get("String", "")) == 1:
        return _by_pair_stage(state)
    raise _UnknownStageError(f"Split with {pattern}, {behavior}")


def _pattern_stage(source: str) -> _Stage:
    pattern = Pattern(source)

    def stage(pair: Pair) -> tuple[Pair, bool] | None:
        return None if pattern.joins(*pair) else (pair, pattern.matches(pair[0]))

    return stage


def _by_pair_stage(state: dict[str, Any]) -> _Stage:
    """A pre-tokenizer that decides for two neighbours whether they part, whatever is around."""
    import tokenizers

    part = _rebuilt(tokenizers.pre_tokenizers.PreTokenizer, state)

    def stage(pair: Pair) -> tuple[Pair, bool] | None:
        return pair, [where for _, where in part.pre_tokenize_str("".join(pair))] != [(0, 2)]

    return stage


def _metaspace_stage(state: dict[str, Any]) -> _Stage:
    mark, splits = state["replacement"], state["split"]

    def stage(pair: Pair) -> tuple[Pair, bool] | None:
        x, y = (mark if char == " " else char for char in pair)
        return (x, y), bool(splits) and y == mark

    return stage
