"""Finds a model's folder: on this machine, in the package, or on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from itemwise.config import DEMO_MODEL
from itemwise.errors import CheckpointError, brief


def locate(
    model: str,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    weights: bool = True,
) -> Path:
    """The folder of a model: `model` itself, or a download from the Hugging Face Hub.

    Of a GGUF file, it is the folder that the file is converted into at the first call.
    `itemwise/demo` is the folder of the demo model, which is part of the package.

    Args:
        model: a folder, or a Hub id.
        revision: branch, tag or commit on the Hub; by default the main branch. A folder has none.
        download_dir: where downloads are kept; by default the Hub's own cache.
        weights: False if only the tokenizer and its like are needed.

    Raises:
        CheckpointError: `model` is neither a folder nor a Hub id, or cannot be downloaded.
    """
    if model == DEMO_MODEL:
        return Path(__file__).parents[1] / "demo_model"
    path = Path(model).expanduser()
    if model and path.is_dir():
        return path
    if path.suffix == ".gguf" and path.is_file():
        from itemwise.checkpoint.gguf_file import convert_once

        return convert_once(path)
    if model and path.exists():
        raise CheckpointError(
            f"`{model}` is a file, expected the model's folder: give the folder that contains it"
        )
    if not _is_hub_id(model):
        raise CheckpointError(
            f"`{model}` does not exist, expected a model folder or a Hugging Face Hub id like "
            "Qwen/Qwen3-0.6B: check the path"
        )
    patterns = ["*.json", "*.jinja", "merges.txt", *(["*.safetensors"] if weights else [])]
    return _download(model, revision, download_dir, patterns)


def _is_hub_id(model: str) -> bool:
    part = r"[A-Za-z0-9][A-Za-z0-9._-]*"
    return bool(re.fullmatch(f"{part}(/{part})?", model)) and ".." not in model


def _download(
    model: str, revision: str | None, download_dir: str | None, patterns: list[str]
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    start = f"`{model}` is not a local folder, and the Hugging Face Hub "
    try:
        # No pickle and no code is downloaded; subfolders hold other formats of the same weights.
        folder = snapshot_download(
            model,
            revision=revision,
            cache_dir=download_dir and Path(download_dir).expanduser(),
            allow_patterns=patterns,
            ignore_patterns=["*/*"],
        )
    except GatedRepoError as error:
        raise CheckpointError(
            f"{start}requires you to accept the model's terms: accept them on "
            f"https://huggingface.co/{model}, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{start}has no such model: check the spelling, or log in with `hf auth login` if it "
            "is private"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{start}has no revision `{revision}` of it: give a branch, a tag or a full commit"
        ) from error
    except Exception as error:  # any failure of the network, the proxy or the disk
        raise CheckpointError(
            f"{start}did not provide it ({brief(error)}): check the network, or download the "
            "model elsewhere and give its folder"
        ) from error
    return Path(folder)
