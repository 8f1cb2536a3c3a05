"""Small populations that train on this machine, through kills and stops; what is left of them is whole."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import runs
from event_file import epochs_in

from hpcrl.pbt.journal import read_journal
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Reader


def population_in(folder: Path) -> Population:
    (path,) = (folder / "checkpoints").glob("pbt_*")
    return Population.open(path)


def check_whole(population: Population) -> None:
    """Every member took every turn once, and every decision is what its records come to."""
    reader = Reader(population)
    for member in population.members:
        folder = reader.folder(member)
        lines = read_journal(folder / "journal.jsonl")
        for event in ("published", "decided"):
            last = population.generations - (event == "decided")
            assert [each["generation"] for each in lines if each["event"] == event] == [*range(1, last + 1)]
        assert sum(each["event"] == "finished" for each in lines) == 1


@pytest.mark.slow
def test_a_population_is_trained_through_kills_of_its_runner_and_of_a_member(small):
    command = runs.command("pbt", "run", "--local", "--config", "small.yaml", "--at-once", "2")
    with open("first.log", "w") as log:
        child = subprocess.Popen(command, env=runs.environment(), stdout=log, stderr=log)
    end = time.monotonic() + 300
    while "(generation 1" not in Path("first.log").read_text():
        assert time.monotonic() < end and child.poll() is None, Path("first.log").read_text()
        time.sleep(0.05)
    child.kill()
    child.wait()
    population = population_in(small)
    again = runs.command("pbt", "run", "--local", "--population", str(population.path), "--at-once", "2")
    with open("second.log", "w") as log:
        child = subprocess.Popen(again, env=runs.environment(), stdout=log, stderr=log)
    while "(generation 2" not in Path("second.log").read_text():
        assert time.monotonic() < end and child.poll() is None, Path("second.log").read_text()
        time.sleep(0.05)
    for each in psutil.Process(child.pid).children()[:1]:
        each.kill()
    assert child.wait(300) == 0, Path("second.log").read_text()
    check_whole(population)
    done = runs.hpcrl("pbt", "verify", str(population.path), "--json", cwd=small)
    assert json.loads(done.stdout)["ok"] is True
    shown = json.loads(runs.hpcrl("pbt", "status", str(population.path), "--json", cwd=small).stdout)
    assert shown["state"] == "finished" and {each["generation"] for each in shown["members"]} == {3}
    assert Path("second.log").read_text().splitlines()[-1] == str(population.path)


@pytest.mark.slow
def test_a_slice_of_one_generation_gets_on_by_one_generation(small):
    words = ("--members", "2", "--at-once", "2", "--set", "pbt.slice=1", "--set", "train.epochs=4")
    runs.hpcrl("pbt", "run", "--local", "--config", "small.yaml", *words, cwd=small)
    population = population_in(small)
    check_whole(population)
    for member in population.members:
        assert len(list((population.folder(member) / "attempts").iterdir())) == population.generations
        start, seen = population.start(member), epochs_in(population.folder(member))
        assert [step for step, _ in seen] == [1, 2, 3, 4]
        assert {f"hyperparameters/{key}": pytest.approx(value) for key, value in start.items()}.items() <= (
            seen[0][1].items()
        )


@pytest.mark.soak
def test_members_of_two_ranks_stop_together_and_go_on(small):
    command = runs.command("pbt", "run", "--local", "--config", "small.yaml", "--members", "2", "--ranks",
                           "2", "--at-once", "1", "--set", "train.epochs=4")  # fmt: skip
    with open("first.log", "w") as log:
        child = subprocess.Popen(command, env=runs.environment(), stdout=log, stderr=log)
    end = time.monotonic() + 300
    while "(generation 1" not in Path("first.log").read_text():
        assert time.monotonic() < end and child.poll() is None, Path("first.log").read_text()
        time.sleep(0.05)
    child.terminate()
    assert child.wait(120) == 75, Path("first.log").read_text()
    population = population_in(small)
    assert population.config.train.world_size == 2
    runs.hpcrl("pbt", "run", "--local", "--population", str(population.path), "--at-once", "1", cwd=small)
    check_whole(population)
