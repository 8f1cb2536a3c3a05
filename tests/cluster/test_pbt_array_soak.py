"""The full population of the acceptance: preemption, power failure, and a member that never starts."""

from __future__ import annotations

import pytest
from population_trial import PopulationTrial, furnish
from servers.slurm import poll
from trial import PATIENCE

pytestmark = [pytest.mark.cluster, pytest.mark.soak]

LATE = 6
OTHERS = (0, 1, 2, 3, 4, 5, 7)


def test_a_population_gets_through_preemption_power_failure_and_a_member_that_never_starts(
    slurm, tmp_path, market_file, record_property
):
    """Eight members of two ranks, four at a time, six generations; the late one then trains alone."""
    place = furnish(tmp_path, market_file)
    # A node for each, so that a node's failure is one member's.
    options = ("--array=0-7%4", "--ntasks-per-node=2", "--gres=gpu:2", "--exclusive", "--partition=lo")
    trial = PopulationTrial.sbatch(slurm, place, "--set", "train.epochs=12", options=options)
    slurm.run("scontrol", "hold", f"{trial.job}_{LATE}")

    first = poll(lambda: training(trial, 0), PATIENCE, slurm.report)
    trial.preempt()
    second = poll(lambda: training(trial, 1), PATIENCE, slurm.report)
    lost = trial.node(second[0])
    slurm.kill_node(lost)
    trial.wait(*OTHERS, timeout=1500)

    population = trial.population
    assert population.generations == 6 and population.config.train.world_size == 2
    trial.assert_whole(*OTHERS)
    best = trial.assert_best_is_named(*OTHERS)
    assert not trial.attempts(LATE) and trial.states()[LATE] == "PENDING"
    ends = [(a.end or {}).get("reason") for m in OTHERS for a in trial.attempts(m)]
    assert "SIGTERM" in ends and None in ends, (first, second, ends)
    order = [member for _, member in trial.starts()]
    assert set(order[: 4 + len(OTHERS)]) == set(OTHERS), f"somebody was starved: {order}"
    slurm.start_node(lost)

    slurm.run("scontrol", "release", f"{trial.job}_{LATE}")
    trial.wait(LATE, timeout=600)
    trial.assert_whole(*population.members)
    trial.assert_best_is_named(*population.members)
    record_property("population on the cluster, starts", len(trial.starts()))
    record_property("population on the cluster, best before the late member", best)
    record_property("population on the cluster, verify", trial.verdict().splitlines()[0].partition(": ")[2])


def training(trial: PopulationTrial, restarts: int) -> list[int]:
    """Members that train, after so many restarts or more."""
    newest = {member: trial.attempts(member)[-1] for member in OTHERS if trial.attempts(member)}
    return [m for m, a in newest.items() if a.ready and a.end is None and a.restart_count >= restarts]
