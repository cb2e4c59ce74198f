"""Text to token ids, by the model folder's `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from itemwise.errors import CheckpointError, RequestError
from itemwise.request.vocabulary import from_vocabulary_files

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"


class Tokenizer:
    """Turns queries, items and labels into token ids; never truncates or pads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend

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
    def vocab_size(self) -> int:
        """Number of tokens, including special and added ones; models often have room for more."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Token ids of a query: with the special tokens that start the model's sequences."""
        return list(self._backend.encode(text).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each item: no special tokens, since an item continues the query."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [list(encoding.ids) for encoding in encodings]

    def label_id(self, text: str) -> int:
        """The one token that `text` is.

        Raises:
            RequestError: `label_not_one_token`, with the tokens that it became.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        if len(encoding.ids) != 1:
            pieces = ", ".join(
                f"{token!r} ({id_})"
                for token, id_ in zip(encoding.tokens, encoding.ids, strict=True)
            )
            raise RequestError(
                "label_not_one_token",
                f"`labels` has {text!r}, which becomes {len(encoding.ids)} tokens"
                + (f": {pieces}" if pieces else "")
                + ", expected one token: use another text (a leading space often matters), or "
                "`label_token_ids`",
                param="labels",
            )
        return int(encoding.ids[0])
