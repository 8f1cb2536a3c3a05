"""What is shown while rows arrive: lines or a bar, on stderr, from any thread."""

from __future__ import annotations

import io
import threading

from hpcrl.market.progress import LINE_SECONDS, show_progress


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
        "0 of 1,000 rows; AAPL 0",
        "1,000 of 4,000 rows, 100 rows/s, 0:00:30 left; AAPL 100; MSFT 900",
        "fetched 4,000 of 4,000 rows, 267 rows/s",
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
            progress(f"S{number:02}", 1, 2)
    last = out.getvalue().split("\x1b[1A\x1b[2K")[-1]
    assert "S99" in last and "S92" in last and "S91" not in last


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
