"""A job over files that can be killed at any time and goes on where it was.

Beside the output is a folder with a file that says what the job is, and a file for each window of
rows that is scored. Each appears whole or not at all, and its name says which rows it has, so the
folder alone knows how far the job is. At the end the parts are joined and the folder is removed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import orjson

from itemwise.errors import BatchError, ConfigError
from itemwise.offline.files import ASIDE, Place
from itemwise.offline.writing import Writer

FOLDER = ".parts"  # ends the name of the folder
JOB_FILE = "job.json"
LOCK_FILE = "lock"
_PART = re.compile(r"(\d{12})-(\d{12})-(\d+)\.part")


@dataclass(frozen=True)
class Part:
    """Rows that are scored.

    Attributes:
        begin: number of the first.
        end: number of the one after the last.
        num_failed: how many of them have an error.
    """

    begin: int
    end: int
    num_failed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.begin:012}-{self.end:012}-{self.num_failed}.part"


class Job:
    """The folder of a job.

    Args:
        output: where the whole output will be.
        facts: what the job is, as JSON values: a job with others does not go on with these parts.

    Attributes:
        parts: what is scored, from row 0 without a gap.
    """

    def __init__(self, output: Place, facts: Mapping[str, Any]) -> None:
        self.output = output
        self.parts: list[Part] = []
        self._facts = orjson.loads(orjson.dumps(facts))
        self._folder = output.beside(FOLDER)
        self._lock: IO[bytes] | None = None

    @property
    def num_rows(self) -> int:
        """Rows that are scored."""
        return self.parts[-1].end if self.parts else 0

    @property
    def num_failed(self) -> int:
        """Rows that have an error."""
        return sum(part.num_failed for part in self.parts)

    def open(self, *, restart: bool = False) -> None:
        """Begins the job, or finds how far it is.

        Args:
            restart: throw away the parts of a job that was not finished, whatever it was.

        Raises:
            ConfigError: the output is there already; or the parts are of another job, which the
                message tells from this one.
            BatchError: another process is at it, or the folder cannot be written.
        """
        names = self._folder.names()
        if foreign := [name for name in names if not _is_ours(name)]:
            raise ConfigError(
                f"`{self._folder.shown}` is where parts are kept, and it has `{foreign[0]}`, which "
                "is no part; move it"
            )
        begun = JOB_FILE in names
        if begun and not restart:
            self._check_facts(orjson.loads(self._folder.child(JOB_FILE).read()))
        elif self.output.exists() and not begun:
            raise ConfigError(
                f"`{self.output.shown}` is there already; remove it, or write to another place"
            )
        self._folder.make_folder()
        self._take_lock()
        try:
            if not begun or restart:
                self._clear(names)
                names = []
                facts = orjson.dumps(self._facts, option=orjson.OPT_INDENT_2)
                self._folder.child(JOB_FILE).write(facts)
            self._find_parts(names)
        except BaseException:
            self.close()
            raise

    def _check_facts(self, facts: Mapping[str, Any]) -> None:
        changed = [
            f"`{name}` was {_shown(facts.get(name))}, is {_shown(self._facts.get(name))}"
            for name in {**facts, **self._facts}
            if facts.get(name) != self._facts.get(name)
        ]
        if changed:
            raise ConfigError(
                f"`{self._folder.shown}` has parts of another job: {'; '.join(changed)}. Run it as "
                "it was to go on, or give --restart to throw the parts away and begin anew"
            )

    def _take_lock(self) -> None:
        if not self._folder.is_local:
            return
        import fcntl

        lock = self._folder.child(LOCK_FILE)
        self._lock = open(lock.path, "ab")  # noqa: SIM115  # until the process ends
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise BatchError(
                f"another process is at the job of `{self.output.shown}`; wait for it, or end it"
            ) from None

    def _find_parts(self, names: Sequence[str]) -> None:
        for name in names:
            match = _PART.fullmatch(name)
            if match and int(match[1]) == self.num_rows:
                self.parts.append(Part(*map(int, match.groups())))
            elif name not in (JOB_FILE, LOCK_FILE):
                self._folder.child(name).remove()  # not whole, or behind a gap

    def _clear(self, names: Sequence[str]) -> None:
        for name in names:  # the job's file comes last
            if name != LOCK_FILE:
                self._folder.child(name).remove()

    def add(self, num_rows: int, num_failed: int, data: bytes) -> None:
        """Keeps the next part.

        Raises:
            BatchError: it cannot be written.
        """
        part = Part(self.num_rows, self.num_rows + num_rows, num_failed)
        self._folder.child(part.name).write(data)
        self.parts.append(part)

    def finish(self, writer: Writer) -> None:
        """Joins the parts to the whole output, and removes their folder.

        Raises:
            BatchError: it cannot be written.
        """
        with self.output.written() as out:
            writer.join([self._folder.child(part.name) for part in self.parts], out)
        # First the job's file: without it, what is left of the folder means nothing.
        self._folder.child(JOB_FILE).remove()
        self._folder.remove()
        self.close()

    def close(self) -> None:
        """Lets others at the job."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _is_ours(name: str) -> bool:
    return name.removesuffix(ASIDE) in (JOB_FILE, LOCK_FILE) or bool(
        _PART.fullmatch(name.removesuffix(ASIDE))
    )


def _shown(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 100 else f"{text[:100]}..."
