"""A population on one machine: who runs when, what is started again, what members get, how it stops."""

from __future__ import annotations

import os
import re
import signal
import time

import psutil
import pytest
import yaml
from local_populations import made_on, make, run, start, started, wait_for
from made_populations import made_config

from hpcrl.launch.population import Places
from hpcrl.launch.population_run import AGAIN
from hpcrl.pbt.records import Reader
from hpcrl.types import HpcrlError


def test_members_run_so_many_at_a_time_and_the_best_is_named(place, capsys):
    population = make(place, "done", "done", "done")
    assert run(population, Places(2, 1)) == 0
    out = capsys.readouterr().out.splitlines()
    assert max(map(int, (place / "plan/at_once").read_text().split())) <= 2
    assert [line for line in out if "begins" in line] == [
        line for member in range(3) for line in out if line.startswith(f"member {member}: begins (process ")
    ]
    for member in range(3):
        shown = [line for line in out if line.startswith(f"member {member} (")]
        assert shown == [f"member {member} (generation {g}): said" for g in range(1, 5)]
        assert f"member {member}: finished" in out
    assert re.search(r"PBT: Best performer: member 2 \(generation 4, objective 2.3 \+- 0", out[-2])
    assert out[-1] == str(population.path)
    names = {path.name for path in population.path.glob("*.png")}
    assert names == {"objective.png", "hyperparameters.png", "lineage.png"}


def test_where_places_are_few_the_member_that_is_least_far_goes_next(place, capsys, no_pictures):
    population = make(place, *["turns:2 turns:2"] * 3)
    assert run(population, Places(1, 1)) == 0
    assert [each["member"] for each in started(place)] == [0, 1, 2, 0, 1, 2]
    out = capsys.readouterr().out
    assert "member 1: goes on after generation 2 (process" in out


def test_a_member_that_crashes_is_started_again_and_the_population_is_whole(place, capsys, no_pictures):
    population = make(place, "done", "killed turns:1 hung killed killed done")
    assert run(population, Places(2, 1)) == 0
    out = capsys.readouterr().out
    assert out.count("member 1: ended by SIGKILL; it goes on from its newest checkpoint") == 3
    assert out.count("member 1: ended by its watchdog (it hung)") == 1
    assert Reader(population).newest(1)[0].generation == 4


def test_a_member_that_only_crashes_is_left_and_the_others_finish(place, capsys, no_pictures):
    population = make(place, "done", " ".join(["killed"] * 9), "done")
    assert run(population, Places(2, 1)) == 1
    shown = capsys.readouterr()
    assert sum(each["member"] == 1 for each in started(place)) == AGAIN + 1
    log = population.folder(1) / "jobs/local.log"
    assert shown.err == (
        f"error: member 1: it ended 4 times in a row without a new generation, last by SIGKILL (log: {log})\n"
    )
    assert [Reader(population).newest(member)[0].generation for member in (0, 2)] == [4, 4]
    assert shown.out.splitlines()[-2:] == [
        "Not finished: members 1. To go on: once that is mended: the command that goes on",
        str(population.path),
    ]


def test_a_mistake_is_told_once_with_its_line_and_not_tried_again(place, capsys, no_pictures):
    population = make(place, "mistake done", "done")
    assert run(population, Places(1, 1)) == 1
    log = population.folder(0) / "jobs/local.log"
    assert [each["member"] for each in started(place)] == [0, 1]
    assert capsys.readouterr().err == (
        f"error: member 0: exit code 2: market.path = gone.h5: no such file (log: {log})\n"
    )
    assert run(population, Places(1, 1)) == 0  # the mistake is mended; member 1 has finished already
    assert [each["member"] for each in started(place)] == [0, 1, 0]


def test_a_member_whose_log_cannot_be_written_is_left_and_the_others_finish(place, capsys, no_pictures):
    population = make(place, "done", "done", "done")
    log = population.folder(1) / "jobs/local.log"
    log.mkdir()
    assert run(population, Places(1, 1)) == 1
    assert [each["member"] for each in started(place)] == [0, 2]
    assert capsys.readouterr().err == f"error: member 1: cannot write {log}: Is a directory\n"


def test_of_a_log_with_several_starts_the_last_ones_words_are_told(place, capsys, no_pictures):
    population = make(place, "mistake", "done")
    log = population.folder(0) / "jobs/local.log"
    log.write_text("start 2026-01-02T03:04:05Z job local attempt 1 on old\nerror: another thing\n")
    assert run(population, Places(2, 1)) == 1
    assert "another thing" not in capsys.readouterr().err
    assert log.read_text().startswith("start 2026-01-02T03:04:05Z"), "a log is appended to"


def test_a_member_begins_with_the_hyperparameters_that_it_will_publish(place):
    population = make(place, *["done"] * 5)
    for member in population.members:
        config = yaml.safe_load((population.folder(member) / "jobs/config.yaml").read_text())
        values = {key: config[key.split(".")[0]][key.split(".")[1]] for key in population.pbt.space}
        assert values == population.start(member)


def test_members_get_their_words_cores_and_nothing_of_another_job(place, monkeypatch, no_pictures):
    for name, value in {"GPU_COUNT": "8", "SLURM_JOB_ID": "12", "DATABASE_URL": "postgres://secret"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    population = make(place, "done", "done")
    assert run(population, Places(1, 2), ("--set", "checkpoint.every_minutes=3")) == 0
    cores = len(os.sched_getaffinity(0))
    folder = population.folder(1)
    assert started(place)[1] == {
        "member": 1,
        "argv": ["train", "--config", str(folder / "jobs/config.yaml"), "--run", str(folder), "--set",
                 "checkpoint.every_minutes=3", "--ranks", "2"],
        "OMP_NUM_THREADS": str(max(1, cores // 2)),
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "GPU_COUNT": None,
        "SLURM_JOB_ID": None,
        "DATABASE_URL": None,
    }  # fmt: skip


def test_each_place_has_gpus_of_its_own_as_long_as_there_are_some():
    def given(places: Places) -> list[str]:
        return [places.environment(place)["CUDA_VISIBLE_DEVICES"] for place in range(places.count)]

    assert given(Places(4, 1, ("0", "1", "2", "3"))) == ["0", "1", "2", "3"]
    assert given(Places(2, 2, ("4", "5", "GPU-a", "GPU-b"))) == ["4,5", "GPU-a,GPU-b"]
    assert given(Places(4, 1, ("0", "1"))) == ["0", "1", "0", "1"]
    assert given(Places(2, 2, ("0", "1", "2"))) == ["0,1", "2,0"]
    assert "CUDA_VISIBLE_DEVICES" not in Places(2, 1).environment(0)
    assert Places(4, 1, ("0", "1")).words() == "4 at a time, which share GPUs"
    assert Places(2, 2, ("0", "1", "2", "3")).words() == "2 at a time, 2 ranks each"


@pytest.mark.parametrize(
    ("gpus", "visible", "ranks", "at_once", "expected"),
    [
        (4, None, 1, None, (4, ("0", "1", "2", "3"))),
        (4, None, 2, None, (2, ("0", "1", "2", "3"))),
        (2, "5, 7", 1, None, (2, ("5", "7"))),
        (1, "5,7", 1, None, (1, ("5",))),  # torch does not see the second one
        (1, None, 1, 4, (4, ("0",))),
        (9, None, 1, None, (8, tuple("012345678"))),  # no more places than members
    ],
)
def test_this_machines_places(monkeypatch, tmp_path, gpus, visible, ranks, at_once, expected):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    config = made_config(tmp_path, "engine.device=auto")
    found = Places.here(config, ranks, at_once)
    assert (found.count, found.gpus) == expected


def test_cores_are_shared_where_there_is_no_gpu_and_too_few_gpus_are_refused(monkeypatch, tmp_path):
    import torch

    cores = len(os.sched_getaffinity(0))
    assert Places.here(made_config(tmp_path), cores).count == 1
    assert Places.here(made_config(tmp_path), 1).count == min(cores, 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(HpcrlError, match=r"--ranks 3: each rank needs a GPU, and this machine shows 2"):
        Places.here(made_config(tmp_path, "engine.device=auto"), 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(HpcrlError, match="torch sees no CUDA device here"):
        Places.here(made_config(tmp_path, "engine.device=cuda"), 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_reaches_every_member_once_and_how_to_go_on_is_told(place, market, number):
    population = made_on(market, place, "wait done", "wait done", "done")
    child = start(population, "--at-once", "2")
    wait_for(place / "plan/waits_0", place / "plan/waits_1")
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 75 and err == "", err
    expected = "SIGTERM" if number == signal.SIGHUP else number.name
    assert [(place / f"plan/saved_{member}").read_text() for member in (0, 1)] == [expected] * 2
    assert {each["member"] for each in started(place)} == {0, 1}, "the third was not to be started any more"
    again = f"hpcrl pbt run --local --population {population.path} --at-once 2"
    assert out.splitlines()[-2:] == [f"Stopped, all saved. To go on: {again}", str(population.path)]


def test_members_do_not_outlive_a_runner_that_is_killed_and_the_next_one_goes_on(place, market):
    population = made_on(market, place, "wait done", "wait done")
    child = start(population)
    wait_for(place / "plan/waits_0", place / "plan/waits_1")
    pids = [int((place / f"plan/waits_{member}").read_text()) for member in (0, 1)]
    child.kill()
    child.communicate()
    end = time.monotonic() + 20
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < end, "a member lives on"
        time.sleep(0.02)
    child = start(population)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0 and err == "" and "Best performer: member 1" in out, err


def test_two_cannot_run_one_population(place, market, hpcrl):
    population = made_on(market, place, "wait", "done")
    os.chdir(place)
    child = start(population)
    try:
        wait_for(place / "plan/waits_0")
        code, out, err = hpcrl("pbt", "run", "--local", "--population", population.path)
        assert code == 2 and out == ""
        expected = f"error: {population.path} is being run by process {child.pid} on "
        assert err.startswith(expected) and err.endswith("; stop that first\n")
    finally:
        child.terminate()
        child.communicate(timeout=60)
