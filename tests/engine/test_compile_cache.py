"""Compiled programs on disk: whose folder keeps them, and what a killed process leaves there."""

from __future__ import annotations

import errno
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from itemwise.engine import compile_cache
from itemwise.engine.compile_cache import compile_whole, compiling_into
from itemwise.engine.engine import Engine
from itemwise.machine_code import is_sealed, seal
from itemwise.types import ScoreRequest

REQUEST = ScoreRequest(query=(1, 2, 3), items=((4,), (5, 6)), labels=((7, 8),) * 2)
SETTINGS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_raise_persistent_cache_errors",
)


def settings() -> dict[str, Any]:
    return {name: getattr(jax.config, name) for name in SETTINGS}


def configure(**changes: Any) -> None:
    """Sets up JAX's cache, as a host program may."""
    for name, value in changes.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def jax_cache() -> Iterator[Callable[..., None]]:
    """Sets up JAX's cache, until the test ends."""
    before = settings()
    yield configure
    configure(**before)


def compile_for_host(name: str) -> None:
    def program(x: jax.Array) -> jax.Array:
        return x + 1

    program.__name__ = name
    jax.jit(program)(1.0)


def programs(folder: Path) -> set[str]:
    """Names of the programs that a folder keeps, without their keys."""
    return {path.name.split("-")[0] for path in folder.glob("*-cache")}


@pytest.mark.parametrize(
    ("algorithm", "own_folder"),
    [
        ("prefill_extend", True),
        ("prefill_extend", False),
        pytest.param("packed", True, marks=pytest.mark.slow),
        pytest.param("packed", False, marks=pytest.mark.slow),
    ],
)
def test_cache_of_the_host_program_stays_its_own(
    algorithm: str,
    own_folder: bool,
    make_engine: Callable[..., Engine],
    jax_cache: Callable[..., None],
    tmp_path: Path,
) -> None:
    host, ours = tmp_path / "host", tmp_path / "ours"
    jax_cache(
        jax_compilation_cache_dir=str(host),
        jax_persistent_cache_min_compile_time_secs=0.0,
        jax_persistent_cache_min_entry_size_bytes=1,
    )
    compile_for_host("first")
    before = settings()
    folder = str(ours) if own_folder else ""
    engine = make_engine(
        compilation_cache_dir=folder, multi_item_algorithm=algorithm, skip_self_check=True
    )
    engine.score([REQUEST])
    assert settings() == before
    compile_for_host("second")
    assert programs(host) == {"jit_first", "jit_second"}
    assert ("jit_step" in programs(ours)) is own_folder
    assert ("jit_packed" in programs(ours)) is (own_folder and algorithm == "packed")
    assert programs(ours).isdisjoint(programs(host))


def test_without_a_cache_the_host_program_stays_without(
    make_engine: Callable[..., Engine], jax_cache: Callable[..., None], tmp_path: Path
) -> None:
    jax_cache(jax_compilation_cache_dir=None)
    before = settings()
    make_engine(compilation_cache_dir=str(tmp_path), skip_self_check=True)
    assert settings() == before
    kept = programs(tmp_path)
    compile_for_host("third")
    assert "jit_step" in kept
    assert programs(tmp_path) == kept


def start(make_engine: Callable[..., Engine], folder: Path) -> dict[str, int]:
    """Sizes of what the folder keeps after a start that finds no program in memory."""
    jax.clear_caches()
    make_engine(compilation_cache_dir=str(folder), skip_self_check=True)
    return {path.name: path.stat().st_size for path in folder.glob("*-cache")}


@pytest.fixture(scope="module")
def filled_once(
    make_engine: Callable[..., Engine], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("filled")
    start(make_engine, folder / "here")
    return shutil.copytree(folder / "here", folder / "copy"), folder / "here"


@pytest.fixture
def filled(filled_once: tuple[Path, Path]) -> Path:
    """A folder with the programs of a start: the same each time, since JAX's keys have its path."""
    copy, folder = filled_once
    shutil.rmtree(folder)
    return shutil.copytree(copy, folder)


def half_write(folder: Path) -> str:
    """Cuts the entry of the step in two; returns its name."""
    (path,) = folder.glob("jit_step-*-cache")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path.name


def test_half_written_entry_is_replaced(
    make_engine: Callable[..., Engine], filled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = start(make_engine, filled)
    step = half_write(filled)
    mended = start(make_engine, filled)
    assert f"entries of the compilation cache {filled} are damaged" in caplog.text
    assert mended.keys() == whole.keys()
    assert mended[step] > whole[step] * 0.9
    caplog.clear()
    assert start(make_engine, filled) == mended
    assert caplog.text == ""


@pytest.mark.slow
def test_an_entry_that_is_sealed_and_yet_not_readable_is_replaced(
    make_engine: Callable[..., Engine], filled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = start(make_engine, filled)
    step = half_write(filled)
    seal(filled / step)
    mended = start(make_engine, filled)
    assert "entry of jit_step in" in caplog.text
    assert mended[step] > whole[step] * 0.9
    caplog.clear()
    assert start(make_engine, filled) == mended
    assert caplog.text == ""


def test_entries_count_when_they_are_whole_and_ours(
    make_engine: Callable[..., Engine], filled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A bit that flips in machine code may be read without a word."""
    names = start(make_engine, filled).keys()
    entries = [filled / name for name in names]
    assert all(map(is_sealed, entries))
    flipped, unsealed, others, *kept = entries
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    (filled / f"{unsealed.name}.sha256").unlink()  # its writer was killed
    others.chmod(0o666)
    before = {path: path.stat().st_ino for path in kept}
    assert start(make_engine, filled).keys() == names
    assert f"3 of {len(names)} entries" in caplog.text
    assert all(map(is_sealed, entries))
    assert {path: path.stat().st_ino for path in kept} == before


def test_a_folder_that_others_may_write_to_is_not_used(
    make_engine: Callable[..., Engine], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o777)
    assert start(make_engine, tmp_path) == {}
    assert f"Compiled programs are not kept (slower start): others may write to {tmp_path}" in (
        caplog.text
    )


def test_warnings_of_other_threads_pass_while_an_entry_is_replaced(
    make_engine: Callable[..., Engine], filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come out at once and unchanged, and none of JAX's is among them."""
    start(make_engine, filled)
    half_write(filled)
    compile_program = jax.stages.Lowered.compile
    sent = [UserWarning("from another thread")]

    def compile_beside_a_warning(lowered: Any, **options: Any) -> Any:
        if sent:
            other = threading.Thread(target=warnings.warn, args=(warning := sent.pop(),))
            other.start()
            other.join()
            assert [found.message for found in caught] == [warning]
        return compile_program(lowered, **options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_beside_a_warning)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start(make_engine, filled)
    assert not sent
    assert len(caught) == 1


def test_a_full_disk_stops_no_start(
    make_engine: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_bytes(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.warns(UserWarning, match="No space left"):
        assert start(make_engine, tmp_path) == {}


def test_a_folder_of_others_stops_no_start(
    make_engine: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    other = tmp_path / "jit_step-0123-cache"
    other.write_bytes(b"another model's")
    seal(other)
    for name in ("write_bytes", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.warns(UserWarning, match="Read-only"):
        start(make_engine, tmp_path)
    assert other.read_bytes() == b"another model's"


def test_a_damaged_entry_that_stays_is_not_loaded(
    make_engine: Callable[..., Engine],
    filled: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start(make_engine, filled)
    half_write(filled)
    before = {path: path.stat().st_mtime_ns for path in filled.iterdir()}
    monkeypatch.setattr(compile_cache, "remove", lambda path: None)
    start(make_engine, filled)
    assert "cannot be removed, so it is not used" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in filled.iterdir()} == before


def test_programs_that_xla_refuses_raise_what_xla_says(tmp_path: Path) -> None:
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    other = tmp_path / "jit__lambda-0123-cache"
    other.write_bytes(b"another program of the same name")
    seal(other)
    with (
        compiling_into(tmp_path, strict=True),
        pytest.raises(jax.errors.JaxRuntimeError, match="no_such"),
    ):
        compile_whole(lowered, {"no_such_option": True}, tmp_path)
    assert other.exists(), "no entry is damaged"
