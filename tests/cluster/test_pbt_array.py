"""A population as a job array on the real cluster: fewer places than members, a crash, hpcrl submit --pbt.

The faults that take longer, and the full counts: test_pbt_array_soak.
"""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest
from launch.test_submit import CANARY, SECRETS
from population_trial import PopulationTrial, furnish

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

MEMBERS = range(4)
# Dies as member 1 in its first start, between what it has published and what it decides upon.
DYING = f"""#!{sys.executable}
import os, signal
from hpcrl.__main__ import main

if os.environ["SLURM_ARRAY_TASK_ID"] == "1" and "SLURM_RESTART_COUNT" not in os.environ:
    from hpcrl.pbt.turn import Member

    Member.choose = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main()
"""


@pytest.fixture
def place(tmp_path, market_file) -> Path:
    return furnish(tmp_path, market_file)


def dying(place: Path) -> Path:
    """A folder with an hpcrl that dies as told."""
    folder = place / "bin"
    folder.mkdir()
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "hpcrl").write_text(DYING)
    for program in folder.iterdir():
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


def test_members_take_turns_in_fewer_places_and_one_that_is_killed_in_its_turn_goes_on(slurm, place):
    options = ("--array=0-3%2",)
    sets = ("--set", "train.epochs=6")  # three generations
    trial = PopulationTrial.sbatch(
        slurm, place, *sets, options=options, HPCRL_BIN=str(dying(place)), **SECRETS
    )
    trial.wait(*MEMBERS)
    population = trial.population
    assert population.generations == 3 and population.pbt.slice == 2 and len(population.members) == 4
    trial.assert_whole(*MEMBERS)
    trial.assert_best_is_named(*MEMBERS)
    killed = trial.attempts(1)
    assert killed[0].end is None and killed[0].job == f"{trial.job}_1" and killed[1].restart_count == 1
    told = json.loads(trial.hpcrl("status", f"{trial.job}_1", "--json"))  # the member, by its task
    assert told["run"] == str(population.folder(1)) and told["state"] == "finished"
    assert "SIGKILL" in told["attempts"][0]["ended"], told
    assert json.loads(trial.hpcrl("status", f"{trial.job}_0", "--json"))["attempts"][0]["ended"].startswith(
        "it has made room for other members of its population; all was saved"
    )
    # Nobody began again while another had not begun at all.
    order = [member for _, member in trial.starts()]
    assert set(order[:2]) == {0, 1} and set(order[:5]) == set(MEMBERS), order
    for member in (0, 2, 3):
        assert [a.end["code"] for a in trial.attempts(member)] == [75, 0], trial.log
    kept = [path.read_bytes() for path in slurm.root.rglob("*") if path.is_file()]
    assert CANARY not in trial.log and not any(CANARY.encode() in text for text in kept)


def test_hpcrl_submit_pbt_trains_each_member_in_its_task(slurm, place):
    (place / "site.yaml").write_text(json.dumps({"cpus_per_task": 1, "mem": "2G", "time": "00:30:00"}))
    words = ["submit", "--pbt", "--config", "pbt.yaml", "--site", "site.yaml", "--set", "train.epochs=2"]
    words += ["--members", "2", "--throttle", "1", "--set", "engine.device=cpu"]  # its nodes' GPUs are none
    before = sorted(place.iterdir())
    submitting = PopulationTrial(slurm, place, "")
    submitting.hpcrl(*words, "--dry-run")
    assert sorted(place.iterdir()) == before and not slurm.run("squeue", "-h").stdout
    said = json.loads(submitting.hpcrl(*words, "--json"))
    trial = PopulationTrial(slurm, place, said["job"])
    assert said["population"] == str(trial.population.path)
    waiting = json.loads(trial.hpcrl("status", str(trial.population.folder(1)), "--json"))
    assert waiting["job"] == f"{trial.job}_1" and waiting["state"] in ("pending", "starting", "running")
    trial.wait(0, 1)
    trial.assert_whole(0, 1)
    trial.assert_best_is_named(0, 1)
    for member in (0, 1):
        (attempt,) = trial.attempts(member)
        assert attempt.job == f"{trial.job}_{member}"
        done = json.loads(trial.hpcrl("status", str(trial.population.folder(member)), "--json"))
        assert (done["state"], done["epoch"], done["job"]) == ("finished", 2, attempt.job)
        assert (trial.population.path / f"jobs/{attempt.job}_0_log.out").is_file()
    ends = [slurm.sacct(f"{trial.job}_{member}")[0] for member in (0, 1)]
    assert ends[0]["End"] <= ends[1]["Start"], "one at a time"
