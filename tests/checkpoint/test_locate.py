"""Model folders are found, and what cannot be found says what to do."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from itemwise.checkpoint.headers import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from itemwise.checkpoint.locate import locate
from itemwise.errors import CheckpointError


def test_locate_takes_a_local_folder(tmp_path: Path) -> None:
    assert locate(str(tmp_path)) == tmp_path


def test_locate_expands_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert locate("~/model") == tmp_path / "model"


@pytest.mark.parametrize(
    "model", ["/no/such/folder", "./missing", "../missing", "~/missing", "a/b/c", "a b", "", "a/.."]
)
def test_locate_refuses_what_is_no_path_and_no_hub_id(model: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist, expected a model folder or a") as e:
        locate(model)
    assert f"`{model}`" in str(e.value)


def test_locate_refuses_a_file(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS_FILE
    path.touch()
    with pytest.raises(CheckpointError, match="is a file, expected the model's folder"):
        locate(str(path))


def test_locate_downloads_neither_pickle_nor_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate("Qwen/Qwen3-0.6B") == tmp_path
    assert asked["repo_id"] == "Qwen/Qwen3-0.6B"
    files = ["model.safetensors", "tokenizer.json", CONFIG_FILE, INDEX_FILE, "chat_template.jinja"]
    others = ["pytorch_model.bin", "modeling.py", "model.gguf", "onnx/config.json", "x.pt"]
    kept = [
        name
        for name in files + others
        if any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])
        and not any(fnmatch(name, pattern) for pattern in asked["ignore_patterns"])
    ]
    assert kept == files


def test_locate_asks_for_a_revision_and_downloads_to_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def download(repo_id: str, **options: Any) -> str:
        asked.append(options)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setenv("HOME", "/home/someone")
    locate("org/model", revision="v1", download_dir="~/models")
    locate("org/model", weights=False)
    first, second = asked
    assert (first["revision"], first["cache_dir"]) == ("v1", Path("/home/someone/models"))
    assert (second["revision"], second["cache_dir"]) == (None, None)
    assert "*.safetensors" in first["allow_patterns"]
    assert "*.safetensors" not in second["allow_patterns"]
    assert "*.json" in second["allow_patterns"]


def hub_error(kind: str) -> Exception:
    from huggingface_hub import errors

    # `__new__` alone: these want the response of an HTTP library that differs by version.
    return {
        "gated": errors.GatedRepoError.__new__(errors.GatedRepoError),
        "absent": errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError),
        "revision": errors.RevisionNotFoundError.__new__(errors.RevisionNotFoundError),
        "offline": errors.LocalEntryNotFoundError("offline mode is on"),
        "network": OSError("cable cut"),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("gated", "accept them on https://huggingface.co/org/model"),
        ("absent", "check the spelling"),
        ("revision", "no revision `v9` of it: give a branch, a tag"),
        ("offline", r"\(offline mode is on\): check the network"),
        ("network", r"\(cable cut\): check the network"),
    ],
)
def test_locate_says_what_to_do_when_the_hub_fails(
    kind: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise hub_error(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=f"`org/model` is not a local folder.*{advice}"):
        locate("org/model", revision="v9")
