"""Machine code on disk: that nobody else can have written it, and that it is whole.

A file counts only with its seal, a digest in a file beside it. A process that is killed, a full
disk or a bit that flips leaves files without a seal that fits, which are made anew. A digest does
not tell who wrote a file; for that, folders and files belong to this user, and others cannot write
to them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from itemwise.config import cache_dir

OPEN = stat.S_IWGRP | stat.S_IWOTH  # to the group or to all
SEAL = ".sha256"  # ends the name of a seal


def private_folder(folder: Path) -> Path:
    """The folder, made if need be, where nobody but this user and root can write.

    In the user's cache folder that holds for its parents there as well, and what is this user's own
    but open to others is closed.

    Raises:
        OSError: others own it or may write to it, or it cannot be made.
    """
    base = cache_dir()
    ours = [one for one in (folder, *folder.parents) if one == base or base in one.parents]
    for one in reversed(ours or [folder]):
        one.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = one.stat()
        if ours and found.st_uid == os.geteuid() and found.st_mode & OPEN:
            one.chmod(0o700)
            found = one.stat()
        _check(one, found)
    return folder


def seal(path: Path) -> None:
    """Makes a file count, and closes it to others.

    Raises:
        OSError: it cannot be read, or no file can be written beside it.
    """
    path.chmod(0o600)
    _write_whole(seal_of(path), _digest(path))


def is_sealed(path: Path) -> bool:
    """Whether the file is as it was when it was sealed, and nobody else can have written it."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            return False
        _check(path, found)
        return seal_of(path).read_text(encoding="ascii") == _digest(path)
    except (OSError, ValueError):
        return False


def remove(path: Path) -> None:
    """Removes a file, or an empty folder in its place, and its seal, where that can be."""
    for one in (path, seal_of(path)):
        with contextlib.suppress(OSError):
            if one.is_dir() and not one.is_symlink():
                one.rmdir()
            else:
                one.unlink()


def _check(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"{path} belongs to another user")
    if found.st_mode & OPEN:
        raise PermissionError(f"others may write to {path}")


def seal_of(path: Path) -> Path:
    """Where a file's seal is."""
    return path.with_name(path.name + SEAL)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_whole(path: Path, text: str) -> None:
    """Writes a file at once: nobody finds a part of it."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with open(handle, "w", encoding="ascii") as file:
            file.write(text)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
