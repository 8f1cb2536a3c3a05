"""``hpcrl pbt status`` and ``hpcrl pbt verify``: each member, the best one, and odd files."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from made_populations import (
    STEPS,
    begin,
    end,
    lose,
    made_config,
    make_population,
    newest_attempt,
)

from hpcrl.launch.population_status import read_status
from hpcrl.pbt.population import Population


@pytest.fixture
def population(tmp_path) -> Population:
    """Five members in six of twelve generations, of which the last has not begun."""
    return make_population(tmp_path, "pbt.members=5", "pbt.level=0.4", generations=6, late=(4,), seed=1)


def status(hpcrl, population: Population) -> dict:
    code, out, err = hpcrl("pbt", "status", population.path, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def journal(population: Population, member: int) -> list[dict]:
    path = newest_attempt(population, member) / "pbt/journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_members_state_is_told_by_how_its_newest_attempt_ended(population, hpcrl):
    end(population, 0, 0)
    end(population, 1, 75, "SIGUSR2")
    end(population, 2, 1, "cannot write /share/x: No space left on device (0 bytes free)")
    found = status(hpcrl, population)  # member 3's process is this one
    assert [each["state"] for each in found["members"]] == [
        "finished", "waiting", "failed", "running", "waiting",
    ]  # fmt: skip
    assert [each["why"] for each in found["members"]] == [
        None, None, "cannot write /share/x: No space left on device (0 bytes free)", None, None,
    ]  # fmt: skip
    assert found["state"] == "running" and found["command"] is None
    lose(population, 3)
    found = status(hpcrl, population)
    assert found["members"][3]["state"] == "failed" and "process is gone" in found["members"][3]["why"]
    assert found["state"] == "failed"
    assert found["command"] == f"hpcrl pbt run --local --population {population.path}"


def test_the_words_of_a_killed_members_last_start_tell_why(population):
    lose(population, 0)
    log = population.folder(0) / "jobs/local.log"
    log.write_text(
        "start 2026-01-02T03:04:05Z job local attempt 1 on a\nerror: an old thing\n"
        "start 2026-01-02T03:05:05Z job local attempt 2 on a\nRuntimeError: CUDA out of memory. Tried\n"
    )
    assert read_status(population.path).members[0].why == "CUDA out of memory. Tried"


def test_a_finished_population_needs_no_command_and_a_stopped_one_has_one(population, hpcrl):
    for member in range(4):
        end(population, member, 75, "SIGTERM")
    found = status(hpcrl, population)
    assert found["state"] == "waiting" and found["command"].endswith(str(population.path))
    (population.path / "submission.json").write_text("{}")
    assert status(hpcrl, population)["command"] == f"hpcrl submit --pbt --population {population.path}"
    begin(population, 4)
    for member in range(5):
        end(population, member, 0)
    found = status(hpcrl, population)
    assert found["state"] == "finished" and found["command"] is None


def test_objective_hyperparameters_and_descent_are_those_of_records_and_journals(population, hpcrl):
    found = status(hpcrl, population)
    copies = 0
    assert found["exploits"] >= 2
    for each in found["members"][:4]:
        lines = journal(population, each["member"])
        published = [line for line in lines if line["event"] == "published"][-1]
        assert each["generation"] == 6 and each["env_steps"] == 6 * STEPS
        assert each["objective"] == published["objective"] and each["spread"] == published["spread"]
        intents = [line for line in lines if line["event"] == "intent"]
        copies += len(intents)
        assert each["exploits"] == len(intents)
        if intents:
            assert each["parent"] == [intents[-1]["donor"], intents[-1]["donor_generation"]]
            assert each["hyperparameters"] == intents[-1]["hyperparameters"]
        else:
            assert each["parent"] is None
            assert each["hyperparameters"] == population.start(each["member"])
    assert found["exploits"] == copies
    objectives = [each["objective"] for each in found["members"][:4]]
    assert found["best"] == objectives.index(max(objectives))
    late = found["members"][4]
    assert (late["generation"], late["objective"], late["last_turn"]) == (0, None, None)
    assert late["hyperparameters"] == population.start(4)


def test_overhead_is_the_share_of_turns_in_all_members_time(population, hpcrl):
    found = status(hpcrl, population)
    assert found["overhead_seconds"] == pytest.approx(4 * 6 * 0.5)
    assert found["overhead_share"] == pytest.approx(0.01)


def test_the_page_marks_the_best_and_names_alarms_failures_and_the_last_turn(population, hpcrl):
    for member in (0, 1):
        end(population, member, 1, "the share is gone")
    with (newest_attempt(population, 2) / "pbt/journal.jsonl").open("a") as file:
        alarm = {"event": "alarm", "generation": 5, "file": "members/01/attempts/1/pbt/records/000005.json"}
        file.write(json.dumps(alarm | {"why": "is no whole JSON"}) + "\n")
    code, out, _ = hpcrl("pbt", "status", population.path)
    found = status(hpcrl, population)
    best = found["best"]
    assert code == 0 and found["alarms"] == 1
    marked = [line for line in out.splitlines() if " best " in line]
    assert len(marked) == 2 and all(line.startswith(f"{best} best ") for line in marked)
    assert "members 0, 1 failed: the share is gone" in out
    assert "ALARM member 2: members/01/attempts/1/pbt/records/000005.json: is no whole JSON" in out
    assert f"copied       {found['exploits']} times" in out
    assert "5: 2 running, 1 waiting, 2 failed" in out
    turns = out[out.index("last turn") :]
    for each in found["members"][:4]:
        assert " ".join(each["last_turn"].split()[:3]) in turns


def test_a_torn_record_is_passed_over_and_named(population, hpcrl):
    path = newest_attempt(population, 1) / "pbt/records/000006.json"
    path.write_text(path.read_text()[:100])
    found = status(hpcrl, population)
    assert found["members"][1]["generation"] == 5
    assert any(str(path) in note and "no whole JSON" in note for note in found["notes"])


def test_what_is_no_population_is_one_line(tmp_path, hpcrl):
    for verb in ("status", "verify", "plot"):
        code, out, err = hpcrl("pbt", verb, tmp_path)
        assert (
            code == 2
            and out == ""
            and err
            == (f"error: {tmp_path}: no population (it holds no population.json); hpcrl pbt run makes one\n")
        )


def test_status_reads_a_population_without_torch_and_changes_nothing(population):
    before = {path: path.stat().st_mtime_ns for path in population.path.rglob("*")}
    code = (
        "import sys; from hpcrl.launch.population_status import show; from pathlib import Path;"
        f"show(Path({str(population.path)!r}), True);"
        "bad = {'torch', 'deepspeed', 'pandas', 'h5py', 'scipy', 'matplotlib'} & sys.modules.keys();"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)
    assert {path: path.stat().st_mtime_ns for path in population.path.rglob("*")} == before


def test_sixteen_members_are_read_in_a_moment(tmp_path):
    population = make_population(tmp_path, "pbt.members=16", "train.epochs=250", generations=20)
    begun = time.process_time()
    read_status(population.path)
    assert time.process_time() - begun < 2.0


def test_verify_is_good_for_a_whole_population_and_names_a_decision_that_is_not(population, hpcrl):
    code, out, err = hpcrl("pbt", "verify", population.path)
    assert (code, err) == (0, "") and "decisions" in out
    code, out, _ = hpcrl("pbt", "verify", population.path, "--json")
    assert code == 0 and json.loads(out)["ok"] is True
    path = newest_attempt(population, 1) / "pbt/records/000003.json"
    record = json.loads(path.read_text())
    record["scores"][0] += 1.0
    path.write_text(json.dumps(record))
    code, out, _ = hpcrl("pbt", "verify", population.path)
    assert code == 1 and "member 1" in out
    code, out, _ = hpcrl("pbt", "verify", population.path, "--json")
    assert code == 1 and json.loads(out)["ok"] is False


def test_a_population_of_one_generation_has_no_decisions_yet_and_is_shown(tmp_path, hpcrl):
    population = Population.create(made_config(tmp_path, "pbt.members=2"), "0" * 64, 24)
    code, out, _ = hpcrl("pbt", "status", population.path)
    assert code == 0 and out.count("none yet") == 2 and "2: 2 waiting" in out
