"""What continuous integration installs: only what is missing, and it says so."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / ".ci" / "install-packages"
ENOUGH = ("bash", "dirname", "grep", "id")  # programs that the script itself uses


def install(folder: Path, **programs: str) -> tuple[str, str]:
    """What the script prints, and how it called apt-get, if these are the only programs."""
    for name in ENOUGH:
        target = next(p for p in (Path("/bin") / name, Path("/usr/bin") / name) if p.exists())
        (folder / name).symlink_to(target)
    for name, body in programs.items():
        (folder / name.replace("_", "-")).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name.replace("_", "-")).chmod(0o755)
    calls = folder / "calls"
    calls.touch()
    environment = {**os.environ, "PATH": str(folder), "CALLS": str(calls)}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, calls.read_text()


NOTE = 'echo "$@" >> "$CALLS"'
SUDO = 'shift; "$@"'


def test_nothing_happens_if_all_is_there(tmp_path: Path) -> None:
    assert install(tmp_path, chromium="", apt_get=NOTE, sudo=SUDO) == ("", "")


def test_what_is_missing_is_installed_and_named(tmp_path: Path) -> None:
    said, called = install(tmp_path, apt_get=NOTE, sudo=SUDO)
    assert said == "Installing with apt-get: chromium\n"
    assert re.search(r"^install .*chromium$", called, re.M)


def test_without_apt_get_or_a_network_the_tests_go_on(tmp_path: Path) -> None:
    for name, programs in (("a", {}), ("b", {"apt_get": "exit 100", "sudo": SUDO})):
        (tmp_path / name).mkdir()
        said, _ = install(tmp_path / name, **programs)
        assert "chromium" in said.splitlines()[-1]
        assert re.search("no apt-get|apt-get failed", said)
