"""Files anywhere: local paths and the URLs that fsspec knows. What is written appears whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from itemwise.errors import BatchError, ConfigError, brief

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
ASIDE = ".aside"  # ends the names of files that are not whole yet
COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Place:
    """A file or a folder of a file system.

    Attributes:
        system: fsspec's file system.
        path: in it.
        shown: for messages.
    """

    system: Any
    path: str
    shown: str

    @classmethod
    def of(cls, url: str) -> Place:
        """The place of a path or a URL.

        Raises:
            ConfigError: fsspec is not installed, or does not know such URLs.
        """
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise ConfigError(
                "files need the packages fsspec and pyarrow: install itemwise[batch]"
            ) from None
        try:
            system, path = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"`{url}` cannot be opened: {brief(error)}") from error
        return cls(system, path, url)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's own file system."""
        from fsspec.implementations.local import LocalFileSystem

        return isinstance(self.system, LocalFileSystem)

    @property
    def suffixes(self) -> tuple[str, str]:
        """The suffix of the format and that of the compression, in lower case; "" for none."""
        stem, last = os.path.splitext(self.path.lower())
        if last in COMPRESSIONS:
            return os.path.splitext(stem)[1], last
        return last, ""

    def beside(self, ending: str) -> Place:
        """The place whose name has an ending more."""
        return Place(self.system, self.path + ending, self.shown + ending)

    def child(self, name: str) -> Place:
        """A place in this folder."""
        return Place(self.system, f"{self.path}/{name}", f"{self.shown}/{name}")

    def exists(self) -> bool:
        """Whether there is something."""
        return bool(self.system.exists(self.path))

    def names(self) -> list[str]:
        """Names of the files in this folder, sorted; none if there is no such folder."""
        self.system.invalidate_cache()
        if not self.system.exists(self.path):
            return []
        return sorted(os.path.basename(path) for path in self.system.ls(self.path, detail=False))

    def make_folder(self) -> None:
        """Makes the folder, unless it is there or the file system has none."""
        with _explained(self, "written"):
            self.system.makedirs(self.path, exist_ok=True)

    def remove(self) -> None:
        """Removes the file, or the folder with all that is in it."""
        self.system.rm(self.path, recursive=True)

    def read(self) -> bytes:
        """What is in the file."""
        with self.opened() as file:
            return file.read()

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The file, to read.

        Raises:
            BatchError: it cannot be read.
        """
        with _explained(self, "read"), self.system.open(self.path, "rb") as file:
            yield file

    def write(self, data: bytes) -> None:
        """Puts the data there, as `written` does."""
        with self.written() as file:
            file.write(data)

    @contextmanager
    def written(self) -> Iterator[IO[bytes]]:
        """A file to write, which appears at this place at the end of the block; or not at all.

        On this machine it is written beside its place, forced to the disk and renamed. Object
        stores show a file once all of it is there.

        Raises:
            BatchError: it cannot be written, for example because the disk is full.
        """
        with _explained(self, "written"):
            if not self.is_local:
                with self.system.open(self.path, "wb") as file:
                    yield file
                return
            aside = self.path + ASIDE
            try:
                with self.system.open(aside, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(aside, self.path)
                _sync_folder(os.path.dirname(self.path))
            except OSError:
                if os.path.exists(aside):
                    os.remove(aside)  # a full disk gets its room back
                raise


@contextmanager
def _explained(place: Place, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or brief(error)
        raise BatchError(
            f"`{place.shown}` cannot be {what}: {reason}; run the same command again when that is "
            "mended, it goes on where it was"
        ) from error


def _sync_folder(folder: str) -> None:
    """Forces a folder's names to the disk, so that a rename outlives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class InputFile:
    """A file of the input.

    Attributes:
        place: where it is.
        size: in bytes, as it is stored.
        version: what tells its content from another one's: an etag, or a time.
    """

    place: Place
    size: int
    version: str

    def facts(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {"path": self.place.path, "size": self.size, "version": self.version}


def find_inputs(url: str) -> list[InputFile]:
    """The files of a path, a folder or a pattern, in the order of their names.

    Files in a folder whose names begin with `.` or `_`, as `_SUCCESS`, are left out.

    Raises:
        ConfigError: there are none.
    """
    place = Place.of(url)
    system = place.system
    try:
        if any(char in place.path for char in "*?["):
            paths = sorted(path for path in system.glob(place.path) if system.isfile(path))
        elif system.isdir(place.path):
            found = sorted(system.ls(place.path, detail=False))
            paths = [p for p in found if system.isfile(p) and os.path.basename(p)[:1] not in "._"]
        else:
            paths = [place.path] if system.exists(place.path) else []
        if not paths:
            raise ConfigError(f"`{url}` has no file, expected a file, a folder or a pattern")
        return [_input_file(place, path) for path in paths]
    except OSError as error:
        raise ConfigError(f"`{url}` cannot be read: {brief(error)}") from error


def _input_file(base: Place, path: str) -> InputFile:
    info = base.system.info(path)
    names = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated")
    version = next((info[name] for name in (*names, "created") if info.get(name)), "")
    shown = base.shown if path == base.path else path
    return InputFile(Place(base.system, path, shown), int(info["size"] or 0), str(version))
