"""What is shown while rows arrive: lines or a bar, on stderr, from any thread."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

from hpcrl.market.progress import LINE_SECONDS, show_progress

ROOT = Path(__file__).resolve().parents[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_every_ten_seconds_and_at_the_end():
    out, clock = io.StringIO(), Clock()
    with show_progress(out, clock) as progress:
        progress("AAPL", 0, 1000)
        clock.now += 1
        progress("AAPL", 100, 1000)
        progress("MSFT", 0, 3000)
        clock.now += LINE_SECONDS - 1
        progress("MSFT", 900, 3000)
        clock.now += 5
        progress("AAPL", 1000, 1000)
        progress("MSFT", 3000, 3000)
    assert out.getvalue().splitlines() == [
        "1,000 of 4,000 rows, 100 rows/s, 0:00:30 left; AAPL 100; MSFT 900",
        "fetched 4,000 of 4,000 rows, 267 rows/s",
    ]


def test_all_totals_are_known_from_the_first_line_on():
    """As a staging tells them, before it fetches: the time left is that of all symbols."""
    out, clock = io.StringIO(), Clock()
    with show_progress(out, clock) as progress:
        for symbol in ("AAPL", "MSFT", "GOOG"):
            progress(symbol, 0, 1000)
        clock.now += 5
        progress("AAPL", 500, 1000)
        clock.now += 5
        progress("AAPL", 1000, 1000)
        clock.now += 10
        progress("MSFT", 500, 1000)
    assert out.getvalue().splitlines() == [
        "1,000 of 3,000 rows, 100 rows/s, 0:00:20 left",
        "1,500 of 3,000 rows, 75 rows/s, 0:00:20 left; MSFT 500",
        "fetched 1,500 of 3,000 rows, 75 rows/s, 0:00:20 left",
    ]


def test_rows_of_an_earlier_run_are_not_counted_as_fetched():
    out, clock = io.StringIO(), Clock()
    with show_progress(out, clock) as progress:
        progress("AAPL", 0, 1000)
        progress("MSFT", 0, 1000)
        progress("MSFT", 900, 0)
        clock.now += 10
        progress("AAPL", 100, 1000)
        clock.now += 10
        progress("MSFT", 1000, 1000)
    assert out.getvalue().splitlines() == [
        "1,000 of 2,000 rows, 10 rows/s, 0:01:40 left; AAPL 100",
        "1,100 of 2,000 rows, 10 rows/s, 0:01:30 left; AAPL 100",
        "fetched 1,100 of 2,000 rows, 10 rows/s, 0:01:30 left",
    ]


def test_rows_that_were_there_already_are_not_counted_as_fetched():
    out, clock = io.StringIO(), Clock()
    with show_progress(out, clock) as progress:
        progress("AAPL", 90_000, 100_000)
        clock.now += 10
        progress("AAPL", 95_000, 100_000)
    assert "95,000 of 100,000 rows, 500 rows/s, 0:00:10 left; AAPL 95,000" in out.getvalue()


def test_a_symbol_fetched_anew_does_not_end_in_nonsense():
    out, clock = io.StringIO(), Clock()
    with show_progress(out, clock) as progress:
        for rows in (0, 600, 0, 1000):
            clock.now += 10
            progress("AAPL", rows, 1000)
    assert out.getvalue().splitlines()[2].startswith("0 of 1,000 rows, 30 rows/s")
    assert out.getvalue().splitlines()[-1] == "fetched 1,000 of 1,000 rows, 53 rows/s"


def test_nothing_is_shown_where_nothing_arrives():
    for stream in (io.StringIO(), Terminal()):
        with show_progress(stream):
            pass
        assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_and_stdout_nothing(capsys):
    out, clock = Terminal(), Clock()
    with show_progress(out, clock) as progress:
        progress("BRK[b]", 0, 2000)
        clock.now += 2
        progress("BRK[b]", 2000, 2000)
    for part in ("BRK[b]", "all", "2,000 of 2,000 rows, 1,000 rows/s"):
        assert part in out.getvalue()
    assert capsys.readouterr().out == ""


def test_many_symbols_leave_room_on_the_screen():
    out = Terminal()
    with show_progress(out, Clock()) as progress:
        for number in range(100):
            progress(f"S{number:02}", 0, 2)
        for number in range(50):
            progress(f"S{number:02}", 1, 2)
    last = out.getvalue().split("\x1b[1A\x1b[2K")[-1]
    assert "S49" in last and "S42" in last and "S41" not in last
    assert "S50" not in last  # it waits for its turn


def test_what_a_thread_tells_after_the_end_is_not_shown():
    for stream in (io.StringIO(), Terminal()):
        with show_progress(stream, Clock()) as progress:
            progress("A", 0, 10)
        shown = stream.getvalue()
        progress("A", 5, 10)
        progress("B", 5, 10)
        assert stream.getvalue() == shown


STOPPED = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
from hpcrl.market.progress import show_progress
with show_progress() as progress:
    for symbol in ("AAAA", "BBBB"):
        progress(symbol, 0, 10**9)
    progress("AAAA", 5 * 10**8, 10**9)
    time.sleep(0.5)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_ctrl_c_in_a_terminal_leaves_each_line_once():
    """The terminal writes ^C behind the last line: it must find room there."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED],
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)},
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        os.close(slave)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        os.write(master, b"\x03")
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while block := os.read(master, 65536):
                shown += block
    os.close(master)
    assert b"^C" in shown
    width = 0
    for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r", "\n").split("\n"):
        width = max(width, len(line))
    assert 70 < width <= 80  # the longest line with ^C behind it: nothing wraps


def test_reports_from_several_threads_add_up():
    for stream in (io.StringIO(), Terminal()):
        clock = Clock()
        with show_progress(stream, clock) as progress:

            def report(symbol: str, progress=progress) -> None:
                for rows in range(501):
                    progress(symbol, rows, 500)

            threads = [threading.Thread(target=report, args=(f"S{n}",)) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            clock.now += 4
        assert "4,000 of 4,000 rows" in stream.getvalue().replace("\n", " ")
