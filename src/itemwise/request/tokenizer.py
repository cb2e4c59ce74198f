"""Text to token ids, by the model folder's `tokenizer.json`."""

from __future__ import annotations

import copy
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from itemwise.errors import CheckpointError, RequestError
from itemwise.request.borders import Borders
from itemwise.request.vocabulary import from_vocabulary_files

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"
# Characters that one call of the library encodes: a few milliseconds, after which others have
# their turn, and the request is asked whether it is still wanted.
PIECE_CHARS = 32 * 1024
PIECE_TEXTS = 1024
MAX_TOKEN_BYTES = 64  # longer tokens are runs of spaces and the like
MAX_LABEL_CHARS = 256
BORDER_SEARCH_CHARS = 256
# A mark has hexadecimal digits from the code points that Unicode leaves to programs.
_LOW, _HIGH = "\ufdd0", "\ufddf"
_NONCE_DIGITS, _NUMBER_DIGITS = 16, 4
_MARK_CHARS = _NONCE_DIGITS + _NUMBER_DIGITS

# Pieces of all requests queue here, so that each waits for one piece of every other at most.
_POOL = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="itemwise-text")


class Border(NamedTuple):
    """A place where a text can be cut.

    Attributes:
        place: characters before it.
        context: the last of these, without which what follows might be encoded otherwise.
    """

    place: int
    context: str


class Tokenizer:
    """Turns texts into token ids; never truncates or pads.

    Control tokens (`<|im_end|>`) that a text spells stay text. `spell_control` replaces them by
    marks that no text can hold, which are encoded as the tokens.

    Attributes:
        vocab_size: number of tokens, including special and added ones; models often have room for
            more.
        begin: the tokens that begin every sequence, often one or none.
        max_token_bytes: bytes of UTF-8 that a token stands for at most, for bounds of texts.
        safe_borders_alone: whether a text without a safe border is refused; see `independent`.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.begin = _begin_ids(backend)
        vocabulary = backend.get_vocab(with_added_tokens=False)
        longest = max((len(token.encode()) for token in vocabulary), default=1)
        self.max_token_bytes = min(longest, MAX_TOKEN_BYTES)
        self.safe_borders_alone = False
        self._between_pieces: Callable[[], None] = lambda: None
        self._context_lengths: dict[str, int] = {}
        added = list(backend.get_added_tokens_decoder().values())
        self._borders = Borders(backend, added)
        self._add_marks(added)

    def _add_marks(self, added: list[tokenizers.AddedToken]) -> None:
        import tokenizers

        control = [token for token in added if token.special]
        self._nonce = _digits(secrets.randbits(4 * _NONCE_DIGITS), _NONCE_DIGITS)
        self._marks = {
            token.content: self._nonce + _digits(number, _NUMBER_DIGITS)
            for number, token in enumerate(control)
        }
        self._prefixes = {c[:size] for c in self._marks for size in range(1, len(c))}
        self._backend.add_tokens(
            [
                tokenizers.AddedToken(
                    self._marks[token.content],
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=False,
                    special=False,
                )
                for token in control
            ]
        )
        self._backend.encode_special_tokens = True  # that is, as text
        self._ids_of_marks = {
            self._backend.token_to_id(mark): self._backend.token_to_id(content) or 0
            for content, mark in self._marks.items()
        }
        self._whole_marks = {
            self._marks[token.content] for token in control if not token.single_word
        }
        longest_first = sorted(added, key=lambda token: -len(token.content))
        self._spelled = re.compile("|".join(map(_spelling, longest_first))) if control else None

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer | None:
        """The tokenizer of a model folder, or None if the folder has none.

        It is `tokenizer.json`, or else `vocab.json` and `merges.txt`.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            made = from_vocabulary_files(folder)
            return None if made is None else cls(made)
        import tokenizers

        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(
                f"`{path}` cannot be read as a tokenizer ({error}): download it again"
            ) from error

    @property
    def has_borders(self) -> bool:
        """Whether it is known where texts can be cut."""
        return self._borders.known

    def with_check(self, between_pieces: Callable[[], None]) -> Tokenizer:
        """The same tokenizer, which calls `between_pieces` often; it raises to give up."""
        checked = copy.copy(self)
        checked._between_pieces = between_pieces
        return checked

    def as_written(self) -> Tokenizer:
        """The same tokenizer, which puts no tokens before a text: chat templates write them."""
        plain = copy.copy(self)
        plain.begin = []
        return plain

    def independent(self) -> Tokenizer:
        """The same tokenizer, with which texts are cut at borders that are known to be safe.

        Where there is none, `encode_prompts` raises `RequestError` (`dependent_items`): items would
        decide where their query ends.
        """
        strict = copy.copy(self)
        strict.safe_borders_alone = True
        return strict

    def spell_control(self, text: str) -> str:
        """The text with a mark in place of every control token that it spells."""
        if self._spelled is None:
            return text
        return self._spelled.sub(lambda found: self._marks.get(found[0], found[0]), text)

    def may_continue(self, text: str) -> bool:
        """Whether the text ends in the first characters of a control token."""
        longest = max(map(len, self._prefixes), default=0)
        return any(text[-size:] in self._prefixes for size in range(1, longest + 1))

    def last_border(self, text: str, end: int | None = None) -> Border | None:
        """The last place at which the text can be cut, whatever follows it.

        Args:
            text: with marks.
            end: characters that count; None for all.

        Returns:
            None if there is none among the last characters.
        """
        size = len(text) if end is None else end
        for place in range(size, max(0, size - BORDER_SEARCH_CHARS), -1):
            before = text[place - 1]
            if _LOW <= before <= _HIGH:
                mark = text[max(0, place - _MARK_CHARS) : place]
                if self._borders.known and mark in self._whole_marks:
                    return Border(place, mark)
            elif place < len(text) and self._borders.is_safe(before, text[place]):
                return Border(place, before)
        return None

    def encode(self, text: str) -> list[int]:
        """Token ids of a sequence that begins with `text`, which may spell control tokens."""
        return self.begun(self.encode_texts([self.spell_control(text)])[0])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as one of its own; it may spell control tokens."""
        return self.encode_texts([self.spell_control(text) for text in texts])

    def begun(self, ids: list[int]) -> list[int]:
        """The ids with the tokens that begin a sequence in front, unless they are there."""
        return [*self.begin, *self.not_begun(ids)]

    def not_begun(self, ids: list[int]) -> list[int]:
        """The ids without the tokens that begin a sequence."""
        return ids[len(self.begin) :] if ids[: len(self.begin)] == self.begin else ids

    def encode_texts(self, texts: Sequence[str], context: str = "") -> list[list[int]]:
        """Token ids of each text with marks, and nothing around them; in pieces.

        Args:
            texts: with marks.
            context: of the border that they follow, if they do.
        """
        parts = [self._parts(text, context) for text in texts]
        flat = [part for each in parts for part in each]
        encoded: list[list[int]] = []
        for piece in _pieces([before + text for before, text in flat]):
            self._between_pieces()
            encoded += _POOL.submit(self._encode_piece, piece).result()
        ids = iter(
            tokens[self._num_tokens(before) :] if before else tokens
            for tokens, (before, _) in zip(encoded, flat, strict=True)
        )
        return [
            next(ids) if len(each) == 1 else [token for _ in each for token in next(ids)]
            for each in parts
        ]

    def places(self, text: str) -> list[int]:
        """The character at which each token of a text with marks begins."""
        # The call for one text holds the interpreter's lock; that for a batch does not.
        encoding = self._backend.encode_batch([text], add_special_tokens=False)[0]
        return [start for start, _ in encoding.offsets]

    def texts_of(self, ids: Sequence[int]) -> list[str]:
        """The text that each token stands for inside a text; empty for an id that is no token.

        A token may be a part of a character's bytes, which reads as U+FFFD.
        """
        decoded = self._backend.decode_batch([[i] for i in ids], skip_special_tokens=False)
        names = [self._backend.id_to_token(i) or "" for i in ids]
        # Some decoders drop the space that a word begins with, since it would begin the text.
        return [
            f" {text}" if name.startswith("\u2581") and not text.startswith(" ") else text
            for name, text in zip(names, decoded, strict=True)
        ]

    def _num_tokens(self, context: str) -> int:
        if context not in self._context_lengths:
            self._context_lengths[context] = len(self._encode_piece([context])[0])
        return self._context_lengths[context]

    def _parts(self, text: str, context: str) -> list[tuple[str, str]]:
        """The text, cut at borders where it is long, each part after its context."""
        parts, start, end = [], 0, PIECE_CHARS
        while len(text) > end:
            border = self.last_border(text, end)
            end += PIECE_CHARS
            if border is not None and border.place > start:
                parts.append((context, text[start : border.place]))
                start, context = border
                end = start + PIECE_CHARS
        return [*parts, (context, text[start:])]

    def _encode_piece(self, texts: list[str]) -> list[list[int]]:
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [self._real(t, e.ids) for t, e in zip(texts, encodings, strict=True)]

    def _real(self, text: str, ids: list[int]) -> list[int]:
        """The ids with control tokens in place of their marks."""
        if self._nonce not in text:
            return ids
        return [self._ids_of_marks.get(token, token) for token in ids]

    def label_id(self, text: str) -> int:
        """The one token that `text` is.

        Raises:
            RequestError: `label_not_one_token`, with the tokens that it became.
        """
        return self.one_token(text, self.encode_labels([text])[0])

    def encode_labels(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; none of one that is too long for one token."""
        return self.encode_batch([text if len(text) <= MAX_LABEL_CHARS else "" for text in texts])

    def one_token(self, text: str, ids: list[int]) -> int:
        """The only one of the ids that `encode_labels` found for a text.

        Raises:
            RequestError: `label_not_one_token`, with the tokens that it became.
        """
        if len(ids) == 1:
            return ids[0]
        if len(text) > MAX_LABEL_CHARS:
            became = f"`labels` has a text of {len(text)} characters, at most {MAX_LABEL_CHARS} fit"
        else:
            pieces = ", ".join(f"{self._backend.id_to_token(i)!r} ({i})" for i in ids)
            became = f"`labels` has {text!r}, which becomes {len(ids)} tokens"
            became += f": {pieces}" if pieces else ""
        raise RequestError(
            "label_not_one_token",
            f"{became}, expected one token: use another text (a leading space often matters), or "
            "`label_token_ids`",
            param="labels",
        )


def _begin_ids(backend: tokenizers.Tokenizer) -> list[int]:
    """What the tokenizer puts before a text; what it puts after one ends a sequence in training."""
    encoding = backend.encode("a")
    framed = zip(encoding.special_tokens_mask, encoding.ids, strict=True)
    return [token for _, token in takewhile(lambda each: each[0] == 1, framed)]


def _digits(number: int, count: int) -> str:
    return "".join(chr(ord(_LOW) + (number >> 4 * place & 15)) for place in reversed(range(count)))


def _spelling(token: tokenizers.AddedToken) -> str:
    pattern = re.escape(token.content)
    return rf"(?<!\w){pattern}(?!\w)" if token.single_word else pattern


def _pieces(texts: list[str]) -> Iterator[list[str]]:
    """The texts in runs, each short enough for one call."""
    piece: list[str] = []
    size = 0
    for text in texts:
        if piece and (size + len(text) > PIECE_CHARS or len(piece) == PIECE_TEXTS):
            yield piece
            piece, size = [], 0
        piece.append(text)
        size += len(text)
    if piece:
        yield piece
