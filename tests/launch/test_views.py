"""What a person sees, in a real terminal of 80 columns: pages fit, and are plain where nobody looks."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs
from made_populations import end, make_population

from hpcrl.market.stage import stage_synthetic

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux: make test-system"),
]
COLUMNS = 80
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9\d)(?:;\d+)*m")
TRAIN = "train --config tiny.yaml --set train.epochs=12 --set monitor.gpu_stats_every=5"
VIEWS = {
    "train": TRAIN,
    "status": "status {run}",
    "status of all": "status",
    "watch": "watch {run} --once",
    "watch of a population": "watch {population} --once",
    "pbt status": "pbt status {population}",
    "verify": "verify --quick --config tiny.yaml",
    "evaluate": "evaluate {run} --split validation",
    "compare": "compare {run} {run}/checkpoint_epoch_4.pt --split validation",
    "help": "--help",
    "help of a verb": "stage supabase --help",
}


class Terminal:
    """A tmux of its own, and what its screen shows."""

    def __init__(self, place: Path) -> None:
        self.place, self.tmux = place, ["tmux", "-S", str(place / "t"), "-f", "/dev/null"]
        size = ["-x", str(COLUMNS), "-y", "24"]
        plain = ["env", "-u", "NO_COLOR", "-u", "COLUMNS", "PS1=", "sh"]
        start = [*self.tmux, "new-session", "-d", *size, "-c", str(place), *plain]
        subprocess.run(start, check=True, timeout=60, env=runs.environment())
        self._do("set-option", "history-limit", "5000")

    def _do(self, *words: str) -> str:
        done = subprocess.run([*self.tmux, *words], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def type(self, *keys: str) -> None:
        self._do("send-keys", *keys)

    def resize(self, columns: int, rows: int) -> None:
        self._do("resize-window", "-x", str(columns), "-y", str(rows))

    def wait(self, text: str, seconds: float = 120) -> str:
        """The screen as soon as it shows the text."""
        until = time.monotonic() + seconds
        while text not in (screen := self._do("capture-pane", "-p")):
            assert time.monotonic() < until, f"{text!r} never came; the screen:\n{screen}"
            time.sleep(0.1)
        return screen

    def run(self, words: str, before: str = "") -> str:
        """All that the command prints, with its escapes; a line that the terminal broke is one."""
        self.type("-R", "clear", "Enter")
        self._do("clear-history")
        ready = "printf 'ended %s\\n' $?"
        script = self.place / "view.sh"
        script.write_text(f"clear; {before} {shlex.join(runs.command(*shlex.split(words)))}; {ready}\n")
        self.type(". ./view.sh", "Enter")
        self.wait("ended 0")
        shown = self._do("capture-pane", "-p", "-e", "-J", "-S", "-")
        return shown.partition("ended 0")[0].rstrip("\n") + "\n"

    def close(self) -> None:
        subprocess.run([*self.tmux, "kill-server"], check=False, timeout=60)


def plain(shown: str) -> list[str]:
    """Its lines without escapes and padding."""
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shown).splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("views")
    stage_synthetic(place / "market.h5", symbols=("AAPL", "MSFT"), bars=1000)
    (place / "tiny.yaml").write_text(runs.TINY)
    population = make_population(place / "checkpoints", generations=4)
    end(population, 2, 1, f"cannot write {'/share/of/many' * 5}/x.pt: No space left on device (0 bytes free)")
    return place


@pytest.fixture(scope="module")
def terminal(place) -> Iterator[Terminal]:
    terminal = Terminal(place)
    yield terminal
    terminal.close()


@pytest.fixture(scope="module")
def trained(terminal, place) -> str:
    """What training showed; its run is there afterwards."""
    return terminal.run(TRAIN)


def words_of(name: str, place: Path) -> str:
    run = next((path.relative_to(place) for path in place.glob("checkpoints/dist_run_*")), "")
    population = next(path.relative_to(place) for path in place.glob("checkpoints/pbt_*"))
    return VIEWS[name].format(run=run, population=population)


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_fits_into_80_columns_and_is_plain_on_a_pipe(name, terminal, trained, place):
    words = words_of(name, place)
    shown = trained if name == "train" else terminal.run(words)
    lines = plain(shown)
    assert any(lines), "something is shown"
    # A path or a command that is to be copied is broken by the terminal alone.
    broken = [line for line in lines if len(line) > COLUMNS and str(place) not in line]
    assert not broken, "\n".join(lines)
    if name in ("train", "help", "help of a verb"):
        return
    assert "\x1b[" in shown, "a terminal has colours"
    if name not in ("evaluate", "compare"):  # which play
        assert not COLOUR.search(terminal.run(words, "NO_COLOR=1")), "NO_COLOR has none"
    piped = runs.hpcrl(*shlex.split(words), cwd=place).stdout
    assert "\x1b" not in piped and "\r" not in piped


def test_training_draws_one_bar_and_says_the_figures_of_its_device_above_it(trained):
    lines = plain(trained)
    (bar,) = [line for line in lines if "━" in line]
    assert bar.startswith("epoch 12/12 ") and " steps/s  reward " in bar and len(bar) <= COLUMNS
    assert len([line for line in lines if re.match(r"\[GPU 0\] CPU \d+% of its cores, memory", line)]) == 2
    assert not any("Collected" in line for line in lines)


def test_a_live_view_fits_whatever_the_window_and_a_folder_that_goes_is_one_line(terminal, place, tmp_path):
    population = next(place.glob("checkpoints/pbt_*"))
    (tmp_path / "p").symlink_to(population)
    words = shlex.join(runs.command("watch", str(tmp_path / "p"), "--every", "0.2"))
    (place / "live.sh").write_text(f"clear; {words}; echo left with $?\n")
    terminal.type(". ./live.sh", "Enter")
    shown = terminal.wait("Ctrl-C leaves").rstrip("\n").splitlines()
    assert len(shown) == 24 and re.fullmatch(r"Ctrl-C leaves; \d+ more lines .*", shown[-1])
    assert any("member 2 failed: " in line for line in shown), "what went wrong comes before the tables"
    try:
        terminal.resize(COLUMNS, 60)
        terminal.wait("last turn")
        terminal.resize(COLUMNS, 12)
        terminal.wait("Ctrl-C leaves; ")
    finally:
        terminal.resize(COLUMNS, 24)
    (tmp_path / "p").unlink()
    screen = terminal.wait("left with 2")
    assert "error: " in screen and "Traceback" not in screen
