"""Members of a population as they train: taking over a donor, and a whole small population by its files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import runs
import torch

from hpcrl.config.load import load_config
from hpcrl.pbt.journal import read_journal
from hpcrl.pbt.population import Population
from hpcrl.storage.attempts import read_attempts
from hpcrl.storage.run_dir import RunDir

SCRIPT = Path(__file__).with_name("adopt_ranks.py")
KILLED = Path(__file__).with_name("killed_member.py")
CASES = [(stage, donor, recipient) for stage in (1, 2, 3) for donor in (1, 2) for recipient in (1, 2)]
SUITE = {(1, 2, 1), (2, 2, 2), (3, 2, 2), (3, 2, 1)}


def make_population(place: Path, *sets: str, data: str = "none", windows: int = 16) -> Population:
    wanted = [f"market.path={place}/market.h5", f"pbt.dir={place}/population", "pbt.members=2", *sets]
    config = load_config(place / "tiny.yaml", wanted, environment={})
    made = Population.create(config, data, windows)
    made.path.rename(place / "moved")
    (place / "population").rmdir()
    (place / "moved").rename(place / "population")
    return Population.open(place / "population")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "donor", "recipient"),
    [pytest.param(*case, marks=() if case in SUITE else pytest.mark.soak) for case in CASES],
)
def test_a_recipient_is_bit_equal_to_its_donor_and_steps_with_the_new_rate(
    place, run_on_ranks, stage, donor, recipient
):
    make_population(place, "pbt.interval=2")
    run_on_ranks(SCRIPT, "donor", place, stage, ranks=donor)
    run_on_ranks(SCRIPT, "recipient", place, stage, ranks=recipient)
    saved = torch.load(place / "checkpoint_epoch_2.pt", weights_only=True)
    found = torch.load(place / "result.pt", weights_only=True)
    model, taken = saved["model"], found["after"]["model"]
    assert taken["step"] == model["step"] > found["before"]["model"]["step"]
    for part in ("weights", "exp_avg", "exp_avg_sq"):
        assert model[part].keys() == taken[part].keys() and len(model[part]) > 10
        for name, tensor in model[part].items():
            assert torch.equal(tensor, taken[part][name]), (part, name)
        assert any(not torch.equal(t, found["before"]["model"][part][n]) for n, t in model[part].items()), (
            part
        )
    assert found["after"]["return_scale"] == saved["return_scale"] != found["before"]["return_scale"]
    for name, tensor in model["weights"].items():
        assert torch.equal(tensor, found["policy"][name]), f"rollouts play another policy: {name}"
    # Its own progress goes on.
    assert found["after"]["epoch"] == 1 and found["lr"] == 2e-3
    once, twice = found["steps"]
    moved = torch.cat([(once[name] - model["weights"][name]).flatten() for name in once]).double()
    double = torch.cat([(twice[name] - model["weights"][name]).flatten() for name in once]).double()
    assert moved.abs().max() == pytest.approx(2e-3, rel=0.9), "an Adam step is about the learning rate"
    assert double.norm() / moved.norm() == pytest.approx(2.0, rel=1e-3)


TURNS = (
    "train.epochs=4", "pbt.interval=2", "pbt.slice=1", "pbt.quantile=0.5", "pbt.level=0.999",
    "pbt.objective.window_bars=6", "learn.lr=1e-3", "checkpoint.keep_rolling=3",
)  # fmt: skip


def take(population: Population, member: int, code: int, *, killed_at: tuple[str, int] | None = None) -> None:
    """One process of a member, until it ends with ``code``."""
    folder = population.folder(member)
    words = ["train", "--config", str(folder / "jobs" / "config.yaml"), "--run", str(folder)]
    command = runs.command(*words)
    if killed_at is not None:
        command = [sys.executable, str(KILLED), *map(str, killed_at), *words]
    done = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"


def journal_of(population: Population, member: int) -> list[dict]:
    newest = read_attempts(population.folder(member))[-1].path
    return read_journal(newest / "pbt" / "journal.jsonl")


def course(population: Population, first: int, killed_at: tuple[str, int] | None = None) -> None:
    """The other member follows ``first``, and decides when that has published."""
    take(population, first, 75)
    other = 1 - first
    if killed_at is not None:
        take(population, other, -9, killed_at=killed_at)  # in the turn after which it makes room
    else:
        take(population, other, 75)
    take(population, other, 0)


@pytest.fixture(scope="module")
def taken_over(tmp_path_factory, market_file) -> tuple[Population, int]:
    """A population in which the second has taken over the first, undisturbed; and who was first."""
    for first in (1, 0):  # of two members the worse takes over the other; which it is, the scores tell
        place = runs.furnish(tmp_path_factory.mktemp("undisturbed"), market_file)
        population = members_of(place)
        course(population, first)
        if any(line["event"] == "adopted" for line in journal_of(population, 1 - first)):
            return population, first
    pytest.fail("neither has taken over the other")


def members_of(place: Path) -> Population:
    from hpcrl.evaluate.windows import find_windows
    from hpcrl.market.load import load_market

    config = load_config(place / "tiny.yaml", [f"market.path={place}/market.h5", *TURNS], environment={})
    market = load_market(config.market)
    return make_population(place, *TURNS, data=market.sha256, windows=len(find_windows(market, config)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "event",
    [
        "intent",
        pytest.param("published", marks=pytest.mark.soak),
        pytest.param("decided", marks=pytest.mark.soak),
        pytest.param("adopted", marks=pytest.mark.soak),
        pytest.param("explored", marks=pytest.mark.soak),
    ],
)
def test_a_member_that_is_killed_within_its_turn_goes_on_as_if_nothing_had_happened(place, taken_over, event):
    reference, first = taken_over
    population = members_of(place)
    course(population, first, (event, 1))
    for member in population.members:
        run, wanted = population.folder(member), reference.folder(member)
        epoch = RunDir(run).manifest_epochs()[0]
        runs.assert_same_course(run, wanted, epoch)
        assert runs.portable(run, epoch)["pbt"] == runs.portable(wanted, epoch)["pbt"]
    events = [line["event"] for line in journal_of(population, 1 - first)]
    for once in ("decided", "intent", "adopted", "explored"):
        assert events.count(once) == 1, events
    assert (events.count("published"), events.count("birth")) == (2, 2)
