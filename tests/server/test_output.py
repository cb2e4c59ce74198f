"""Lines that nobody reads hold nobody up."""

from __future__ import annotations

import os
import time

from itemwise.server.output import Lines

WAIT_S = 20


def test_lines_arrive_in_order() -> None:
    reader, writer = os.pipe()
    lines = Lines(writer)
    for number in range(100):
        lines.write(f"{number} \udcff")
    lines.flush(WAIT_S)
    os.close(writer)
    with open(reader, "rb") as stream:
        assert stream.read() == b"".join(b"%d \\udcff\n" % number for number in range(100))


def test_reader_who_stalls_holds_nobody_up() -> None:
    reader, writer = os.pipe()
    lines = Lines(writer, max_lines=10)
    started = time.monotonic()
    for _ in range(1000):
        lines.write("x" * 1000)
    lines.flush(0.1)
    assert time.monotonic() - started < WAIT_S / 2
    got = os.read(reader, 1 << 20)
    lines.flush(WAIT_S)
    while b"lines were lost before this one" not in got:
        lines.write("more")
        got += os.read(reader, 1 << 20)
    os.close(reader)


def test_reader_who_leaves_or_a_full_disk_is_no_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor in (writer, full, 12345):
        lines = Lines(descriptor)
        lines.write("lost")
        lines.flush(WAIT_S)
    os.close(writer)
    os.close(full)
