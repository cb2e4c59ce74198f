"""Machine code on disk: what counts, and in which folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from itemwise.machine_code import is_sealed, private_folder, remove, seal


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "itemwise"


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a file or folder another user's."""

    def change(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, 65534, 65534)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

    return change


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("no_umask")
def test_folders_are_closed_whatever_the_umask(base: Path, tmp_path: Path) -> None:
    folder = private_folder(base / "kernels")
    other = private_folder(tmp_path / "some" / "where")
    assert [mode(one) for one in (base, folder, other)] == [0o700] * 3
    file = folder / "code"
    file.write_bytes(b"code")
    seal(file)
    assert mode(file) == 0o600


def test_our_own_open_folder_is_closed_in_the_cache_and_refused_elsewhere(
    base: Path, tmp_path: Path
) -> None:
    (base / "xla").mkdir(parents=True)
    for one in (base, base / "xla"):
        one.chmod(0o775)
    assert private_folder(base / "xla") == base / "xla"
    assert mode(base) == mode(base / "xla") == 0o700
    (open_one := tmp_path / "open").mkdir()
    open_one.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write to"):
        private_folder(open_one)
    assert mode(open_one) == 0o777


@pytest.mark.parametrize("whose", ["", "kernels"])
def test_a_folder_of_others_is_refused(
    whose: str, base: Path, give_away: Callable[[Path], None]
) -> None:
    folder = private_folder(base / "kernels")
    give_away(base / whose)
    with pytest.raises(PermissionError, match="belongs to another user"):
        private_folder(folder)


def test_a_sealed_file_counts_until_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "code"
    assert not is_sealed(file)
    file.write_bytes(b"some code")
    assert not is_sealed(file)
    seal(file)
    assert is_sealed(file)
    for damaged in (b"", b"some", b"some codE", b"some code and more"):
        file.write_bytes(damaged)
        assert not is_sealed(file)
    file.write_bytes(b"some code")
    assert is_sealed(file)
    (tmp_path / "code.sha256").write_bytes(b"\xff")
    assert not is_sealed(file)
    remove(file)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_others_does_not_count(tmp_path: Path, give_away: Callable[[Path], None]) -> None:
    file = tmp_path / "code"
    file.write_bytes(b"some code")
    seal(file)
    file.chmod(0o666)
    assert not is_sealed(file)
    file.chmod(0o600)
    assert is_sealed(file)
    give_away(file)
    assert not is_sealed(file)


def test_a_link_does_not_count(tmp_path: Path) -> None:
    file, link = tmp_path / "code", tmp_path / "link"
    file.write_bytes(b"some code")
    link.symlink_to(file)
    seal(link)
    assert not is_sealed(link)
    (tmp_path / "folder").mkdir()
    assert not is_sealed(tmp_path / "folder")
