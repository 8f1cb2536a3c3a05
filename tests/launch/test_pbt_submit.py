"""hpcrl submit --pbt and slurm/pbt.sbatch without a cluster: what is refused, kept and handed to each member.

A stand-in for sbatch answers; on the real cluster: tests/cluster/test_pbt_array.py.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from launch import test_submit
from launch.job_scripts import ROOT, Repository, exported, late_directives
from launch.test_submit import CANARY, SECRETS, left
from launch.test_submit_scripts import ALL, GOLDEN, ODD, plan_of

from hpcrl.config.load import load_config
from hpcrl.launch.array import ArrayPlan, array_script
from hpcrl.launch.array_task import main, member_of
from hpcrl.launch.scripts import EXPORT
from hpcrl.market.stage import stage_synthetic
from hpcrl.pbt.population import Population
from hpcrl.storage.attempts import Attempt
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError

SCRIPT = ROOT / "slurm/pbt.sbatch"
sbatch = test_submit.sbatch  # a fixture
TINY = """
train: {epochs: 6}
market: {path: market.h5}
env: {envs_per_gpu: 4, episode_rollouts: 2, lot: 1}
policy: {d_model: 16, layers: 2, heads: 2, window: 8}
learn: {rollout: 32, sequence_length: 16, batch_size: 64, ppo_epochs: 2}
engine: {precision: fp32}
pbt: {members: 4, interval: 2, objective: {window_bars: 8}}
"""


@pytest.fixture(scope="session")
def market(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("market") / "market.h5"
    stage_synthetic(path, symbols=("AAPL",), bars=1000)
    return path


@pytest.fixture
def project(tmp_path, market, monkeypatch) -> Path:
    """A folder with a config and data, in which the commands are called."""
    for name in ("HPCRL_SITE", "HPCRL_ROOT", "SLURM_CONF", "GPU_COUNT", "TRAINING_MODE", "ENVS_PER_GPU"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pbt.yaml").write_text(TINY)
    (tmp_path / "market.h5").symlink_to(market)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def submit(hpcrl, project):
    """``submit(options...) -> (exit code, stdout, stderr)`` of hpcrl submit --pbt with the tiny config."""
    return lambda *options: hpcrl("submit", "--pbt", "--config", "pbt.yaml", *options)


def directives(script: str) -> dict[str, str]:
    """Options of sbatch, {"array": "0-7%4", "requeue": ""}."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.M))


def made(project: Path) -> Population:
    (path,) = project.glob("checkpoints/pbt_*")
    return Population.open(path)


class TestSubmission:
    def test_keeps_what_the_members_their_status_and_the_next_submission_need(self, submit, project, sbatch):
        sbatch("Submitted batch job 12")
        code, out, err = submit("--throttle", "3", "--gpus-per-member", "2")
        population = made(project)
        assert code == 0 and out == f"{population.path}\n", err
        assert "submitted 4 members as array 12, 3 at a time\n" in err
        record = json.loads((population.path / "submission.json").read_text())
        (job,) = record["jobs"]
        assert job.items() >= {"id": "12", "kind": "train", "members": [0, 1, 2, 3], "throttle": 3}.items()
        assert record["arguments"][:2] == ["submit", "--pbt"] and record["folder"] == str(project)
        assert (population.path / job["script"]).is_file()
        assert population.config.train.world_size == 2 and population.pbt.slice == 2
        for member in population.members:
            run = population.folder(member)
            (own,) = json.loads((run / "submission.json").read_text())["jobs"]
            assert own["id"] == f"12_{member}" and (run / own["script"]).is_file()
            delayed = pickle.loads((population.path / f"jobs/12_{member}_submitted.pkl").read_bytes())
            assert delayed.args == ("train", "--config", f"{run}/jobs/config.yaml", "--run", str(run))

    def test_as_many_places_as_members_or_a_site_that_never_requeues_make_no_slices(
        self,
        submit,
        project,
        sbatch,
    ):
        sbatch()
        (project / "never.yaml").write_text("requeue: never")
        for name, options in {"all": ["--throttle", "4"], "never": ["--site", "never.yaml"]}.items():
            code, _, err = submit(*options, "--set", f"pbt.dir={name}")
            assert code == 0, err
            (path,) = project.glob(f"{name}/pbt_*")
            assert Population.open(path).pbt.slice is None

    def test_the_usual_config_is_the_repositorys(self, hpcrl, project, sbatch):
        sbatch()
        code, out, err = hpcrl("submit", "--pbt", "--dry-run", "--set", "market.path=market.h5")
        assert code == 0 and "#SBATCH --array=0-7%4\n" in out and "#SBATCH --gres=gpu:1\n" in out, err
        assert left(project) == ["market.h5", "pbt.yaml"]

    def test_the_script_is_what_a_dry_run_shows(self, submit, project, sbatch):
        sbatch()
        code, shown, err = submit("--dry-run")
        assert code == 0 and err.startswith("population: ") and left(project) == ["market.h5", "pbt.yaml"]
        assert submit()[0] == 0
        population = made(project)
        (script,) = population.path.glob("jobs/*_submission.sh")
        name = next(word for word in shown.split("--job-name=")[1].split())
        assert shown == script.read_text().replace(population.path.name, name) + "\n"

    def test_both_ways_ask_slurm_for_the_same(self, submit):
        code, shown, err = submit("--dry-run", "--members", "8")
        assert code == 0, err
        here, there = directives(shown), directives(SCRIPT.read_text())
        differ = {name for name in here | there if here.get(name) != there.get(name)}
        assert differ == {"job-name", "output", "chdir"}
        assert {"array", "gres", "mem", "time", "signal", "export", "requeue"} <= here.keys()

    def test_no_secret_is_in_anything_that_is_kept_or_handed_to_slurm(
        self,
        submit,
        project,
        sbatch,
        monkeypatch,
    ):
        environ = sbatch()
        for name, value in (SECRETS | {"SBATCH_EXPORT": "ALL"}).items():
            monkeypatch.setenv(name, value)
        code, out, err = submit()
        assert code == 0, err
        kept = b"".join(path.read_bytes() for path in made(project).path.rglob("*") if path.is_file())
        assert CANARY not in kept.decode(errors="replace") + environ.read_text() + out + err
        assert "SBATCH_EXPORT" not in environ.read_text()

    def test_going_on_submits_only_members_that_are_not_finished(self, submit, hpcrl, project, sbatch):
        sbatch()
        (project / "site.yaml").write_text("partition: first")
        assert submit("--site", "site.yaml")[0] == 0
        population = made(project)
        for member in (0, 2):
            end(population, member, 0)
        end(population, 1, 75)
        code, _, err = hpcrl("submit", "--pbt", "--population", population.path, "--throttle", "8")
        assert code == 0 and "submitted 2 members as array 8, 2 at a time" in err, err
        script = (population.path / "jobs/8_submission.sh").read_text()
        assert "#SBATCH --array=1,3%2\n" in script and "#SBATCH --partition=first\n" in script
        jobs = json.loads((population.path / "submission.json").read_text())["jobs"]
        assert [(job["id"], job["members"]) for job in jobs] == [("7", [0, 1, 2, 3]), ("8", [1, 3])]
        own = [json.loads((population.folder(m) / "submission.json").read_text())["jobs"] for m in (0, 1)]
        assert [[job["id"] for job in jobs] for jobs in own] == [["7_0"], ["7_1", "8_1"]]
        for member in (1, 3):
            end(population, member, 0)
        code, _, err = hpcrl("submit", "--pbt", "--population", population.path)
        assert code == 2 and "all 4 members are finished" in err and err.count("\n") == 1

    def test_live_keys_that_are_said_while_going_on_reach_each_member(self, submit, hpcrl, project, sbatch):
        sbatch()
        assert submit()[0] == 0
        path = made(project).path
        options = ("--population", path, "--set", "monitor.hang_minutes=7")
        assert hpcrl("submit", "--pbt", *options)[0] == 0
        delayed = pickle.loads((path / "jobs/8_2_submitted.pkl").read_bytes())
        assert delayed.args[-2:] == ("--set", "monitor.hang_minutes=7.0")

    def test_a_population_that_somebody_trains_is_not_submitted_again(self, submit, hpcrl, project, sbatch):
        sbatch()
        assert submit()[0] == 0
        population = made(project)
        Attempt.claim(RunDir(population.folder(2)), 1, {"job": None, "restart_count": 0, "trigger": "user"})
        code, _, err = hpcrl("submit", "--pbt", "--population", population.path)
        assert code == 2 and f"attempt 1 trains it (process {os.getpid()} on " in err


def end(population: Population, member: int, code: int) -> None:
    """An attempt that took over, and ended."""
    attempt = Attempt.claim(
        RunDir(population.folder(member)), 1, {"job": "7_0", "restart_count": 0, "trigger": "user"}
    )
    attempt.take_over(None)
    attempt.end(code, 6, "finished")


class TestRefusal:
    @pytest.mark.parametrize(
        ("options", "part"),
        [
            (["--throttle", "0"], "--throttle 0: at least one member must be able to train"),
            (["--members", "1"], "--members 1: a population needs at least 2 members"),
            (["--members", "3", "--set", "pbt.members=4"], "--members 3 stands for --set pbt.members=3"),
            (["--set", "pbt.members=1"], "pbt.members"),
            (["--gpus-per-member", "0"], "--gpus-per-member 0: a member needs at least 1 rank"),
            (["--gpus-per-member", "9"], "a member of 9 ranks (--gpus-per-member, train.world_size) does not "
             "fit the site: a node takes at most gpus_per_node = 8"),
            (["--gpus-per-member", "3", "--site", "two.yaml"], "at most gpus_per_node = 2 ranks"),
            (["--gpus-per-member", "2", "--set", "train.world_size=2"], "give one of them"),
            (["--site", "successor.yaml"], "the site's requeue = successor is not for populations"),
            (["--site", "cpu.yaml", "--set", "engine.device=cuda"], "gres = none"),
            (["--resume", "x"], "--resume is for a single run, it does not go with --pbt: --population"),
            (["--chain", "train,evaluate"], "--chain is for a single run"),
            (["--ranks", "2"], "--gpus-per-member says how many ranks"),
            (["--nodes", "2"], "a member is on one node"),
            (["--local"], "hpcrl pbt run --local"),
            (["--init", "x"], "--init is for a single run"),
            (["--take-over"], "--take-over is for a single run"),
            (["--no-wait"], "--wait is for a single run"),
            (["--set", "pbt.space.learn.lrr.low=1"], "nearest: learn.lr"),
            (["--set", "pbt.space.learn.lr.low=1e-2"], "learn.lr"),
            (["--set", "pbt.objective.window_bars=40"], "a population needs at least 16"),
            (["--set", "pbt.interval=7"], "train.epochs = 6 is less than pbt.interval = 7"),
            (["--set", "pbt.dir=100%done"], "pbt.dir = "),
            (["--set", "market.path=none.h5"], "none.h5: no such file"),
            (["--set", f"market.path=postgresql://me:{CANARY}@db/x"], "an argument looks like a secret"),
            (["--population", "none"], "no population"),
            (["--config", "none.yaml"], "none.yaml: cannot be read"),
        ],
    )  # fmt: skip
    def test_is_one_line_and_leaves_nothing(self, submit, project, sbatch, options, part):
        sbatch()
        (project / "two.yaml").write_text("gpus_per_node: 2")
        (project / "successor.yaml").write_text("requeue: successor")
        (project / "cpu.yaml").write_text("gres: none")
        before = left(project)
        code, out, err = submit(*options)
        assert code == 2 and part in err and err.count("\n") == 1 and CANARY not in err and not out, err
        assert left(project) == before

    @pytest.mark.parametrize("option", ["--members", "--gpus-per-member", "--throttle", "--population"])
    def test_an_option_of_populations_needs_pbt(self, hpcrl, project, option):
        code, _, err = hpcrl("submit", "--config", "pbt.yaml", option, "2")
        assert (code, err) == (2, f"error: {option} is for populations: add --pbt\n")

    def test_a_gpu_count_of_another_number_is_told(self, submit, monkeypatch):
        monkeypatch.setenv("GPU_COUNT", "4")
        code, _, err = submit("--gpus-per-member", "2")
        assert code == 2 and "--gpus-per-member 2, but GPU_COUNT = 4" in err and err.count("\n") == 1

    def test_by_sbatch_leaves_no_folder(self, submit, project, sbatch):
        sbatch("", "sbatch: error: invalid partition specified: x", 1)
        code, out, err = submit("--set", "pbt.dir=a/b")
        assert code == 2 and "sbatch refused the population's job: invalid partition" in err and not out
        assert left(project) == ["market.h5", "pbt.yaml"]

    def test_by_sbatch_leaves_a_population_that_was_to_go_on_as_it_was(self, submit, hpcrl, project, sbatch):
        sbatch()
        assert submit()[0] == 0
        path = made(project).path
        before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
        sbatch("", "sbatch: error: no", 1)
        code, _, err = hpcrl("submit", "--pbt", "--population", path)
        assert code == 2 and "sbatch refused" in err
        assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before

    def test_a_record_that_cannot_be_written_leaves_neither_job_nor_folder(
        self,
        submit,
        project,
        sbatch,
        monkeypatch,
    ):
        commands = sbatch().parent

        def full(*_: object) -> None:
            raise HpcrlError("cannot write submission.json: no space")

        monkeypatch.setattr("hpcrl.launch.array.write_record", full)
        code, _, err = submit()
        assert code == 2 and "no space" in err and left(project) == ["market.h5", "pbt.yaml"]
        assert (commands / "scancel.called").read_text() == "7\n"

    def test_without_slurm_it_says_what_works_here(self, submit, project, monkeypatch):
        monkeypatch.setenv("PATH", "/nowhere")
        code, _, err = submit()
        assert code == 2 and "no sbatch on PATH" in err and "hpcrl pbt run --local" in err
        assert left(project) == ["market.h5", "pbt.yaml"]


CASES = {
    "pbt": ({}, "/home/me/project", 4),
    "pbt_all_keys": (ALL | {"nodes": 1, "requeue": "requeue"}, "/home/me/project", 2),
    "pbt_odd_paths": ({"requeue": "never"}, f"/home/me/{ODD}", 8),
}


@pytest.mark.parametrize("name", CASES)
def test_a_script_equals_its_golden_file(name):
    """HPCRL_WRITE_GOLDEN=1 writes it anew."""
    site, folder, throttle = CASES[name]
    job = plan_of({"train": {"mem": "8G"}} | site, folder)
    config = load_config(base=job.config.model_dump(mode="json"), overrides=["train.world_size=1"])
    plan = ArrayPlan(replace(job, config=config), throttle, population=None)
    script = array_script(plan, Path(folder) / "checkpoints" / "pbt_20260102_030405")
    path = GOLDEN / f"{name}.sh"
    if os.environ.get("HPCRL_WRITE_GOLDEN"):
        path.write_text(script + "\n")
    assert script + "\n" == path.read_text()


def environ_of(task: int, count: int = 4, **more: str) -> dict[str, str]:
    return {
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_ARRAY_TASK_MAX": str(count - 1),
        "SLURM_NTASKS": "1",
        **more,
    }


class TestTask:
    """Of a plain array: which population, which member."""

    @pytest.mark.slow
    def test_tasks_that_start_at_once_make_one_population(self, project):
        code = (
            "import os, sys, time\n"
            "from hpcrl.launch import array_task\n"
            "make = array_task.new_population\n"
            "def together(*arguments):\n"
            "    made = make(*arguments)\n"
            "    open('ready_' + os.environ['SLURM_ARRAY_TASK_ID'], 'w').close()\n"
            "    while sum(name.startswith('ready_') for name in os.listdir('.')) < 3: time.sleep(0.01)\n"
            "    return made\n"
            "array_task.new_population = together\n"
            "array_task.main(['--config', 'pbt.yaml'])\n"
        )

        def start(task: int) -> str:
            environ = {**os.environ, **environ_of(task), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(start, range(3)))
        population = made(project)  # exactly one
        assert found == [str(population.folder(task)) for task in range(3)]
        assert (project / "hpcrl_12.population").resolve() == population.path
        assert not [name for name in os.listdir(project / "checkpoints") if name.startswith(".")]

    def test_a_task_that_is_started_again_or_late_finds_its_population_whatever_the_config_is_by_now(
        self, project
    ):
        first, _ = member_of(["--config", "pbt.yaml"], environ_of(0))
        population = made(project)
        for text in (TINY.replace("members: 4", "members: 4, dir: elsewhere"), "broken: ["):
            (project / "pbt.yaml").write_text(text)
            again, _ = member_of(["--config", "pbt.yaml"], environ_of(0, SLURM_RESTART_COUNT="1"))
            late, _ = member_of(["--config", "pbt.yaml"], environ_of(3))
            assert (first, again, late) == tuple(population.folder(member) for member in (0, 0, 3))
        assert made(project).id == population.id and not (project / "elsewhere").exists()

    def test_another_array_makes_another_population(self, project):
        member_of(["--config", "pbt.yaml"], environ_of(0))
        other, _ = member_of(["--config", "pbt.yaml"], environ_of(0) | {"SLURM_ARRAY_JOB_ID": "13"})
        assert len(list(project.glob("checkpoints/pbt_*"))) == 2
        assert other.parents[1] == (project / "hpcrl_13.population").resolve()

    def test_members_and_ranks_are_those_of_the_job(self, project):
        run, _ = member_of(["--config", "pbt.yaml"], environ_of(5, 6, SLURM_NTASKS="2"))
        population = Population.open(run.parents[1])
        assert len(population.members) == 6 and population.config.train.world_size == 2

    @pytest.mark.parametrize(("throttle", "slice"), [(2, 2), (4, None), (0, None)])
    def test_fewer_places_than_members_make_slices(self, project, monkeypatch, throttle, slice):
        shown = "JobId=15 ArrayJobId=12 ArrayTaskId=0 " + f"ArrayTaskThrottle={throttle} " * bool(throttle)
        monkeypatch.setattr("hpcrl.launch.array_task.run_slurm", lambda _: shown + "JobName=x")
        run, _ = member_of(["--config", "pbt.yaml"], environ_of(0))
        assert Population.open(run.parents[1]).pbt.slice == slice

    def test_where_nothing_is_requeued_there_are_no_slices(self, project, monkeypatch):
        monkeypatch.setattr("hpcrl.launch.array_task.run_slurm", lambda _: "ArrayTaskThrottle=1")
        run, _ = member_of(["--config", "pbt.yaml"], environ_of(0, HPCRL_REQUEUE="never"))
        assert Population.open(run.parents[1]).pbt.slice is None

    def test_going_on_takes_the_population_that_is_said(self, project):
        run, _ = member_of(["--config", "pbt.yaml"], environ_of(0))
        path = str(run.parents[1])
        environ = environ_of(3, 2) | {"SLURM_ARRAY_JOB_ID": "13"}
        found, live = member_of(["--population", path, "--set", "monitor.hang_minutes=7"], environ)
        assert found == Path(path) / "members/03" and live == ["--set", "monitor.hang_minutes=7.0"]
        assert not (project / "hpcrl_13.population").exists()

    def test_of_a_finished_member_there_is_nothing_to_train(self, project, monkeypatch, capsys):
        for name, value in environ_of(2).items():
            monkeypatch.setenv(name, value)
        main(["--config", "pbt.yaml"])
        population = made(project)
        assert capsys.readouterr().out == f"{population.folder(2)}\n"
        end(population, 2, 75)
        main(["--population", str(population.path)])
        assert capsys.readouterr().out == f"{population.folder(2)}\n"
        end(population, 2, 0)
        main(["--population", str(population.path)])
        out, err = capsys.readouterr()
        assert out == "" and err == f"member 02 of {population.path} is finished\n"

    @pytest.mark.parametrize(
        ("arguments", "environ", "part"),
        [
            (["--config", "pbt.yaml"], {}, "a population is a job array, whose task k is member k: sbatch"),
            (["--config", "pbt.yaml"], environ_of(4, 4) | {"SLURM_ARRAY_TASK_MAX": "7"}, "without gaps"),
            (["--config", "pbt.yaml"], environ_of(0, 1), "pbt.members"),
            (["--config", "pbt.yaml", "--set", "pbt.members=8"], environ_of(0),
             "pbt.members = 8, but the job says 4 (sbatch --array=0-3)"),
            (["--config", "pbt.yaml"], environ_of(0, GPU_COUNT="2"), "world_size = 2, but the job says 1"),
            (["--config", "pbt.yaml", "--members", "3"], environ_of(0), "unrecognized arguments: --mem"),
            (["--config"], environ_of(0), "expected one argument"),
            (["--population", "none"], environ_of(0), "no population"),
        ],
    )  # fmt: skip
    def test_a_mistake_is_one_line_and_makes_nothing(self, project, arguments, environ, part):
        with pytest.raises(HpcrlError) as told:
            member_of(arguments, environ)
        assert part in str(told.value) and "\n" not in str(told.value)
        assert left(project) == ["market.h5", "pbt.yaml"]

    def test_a_task_beyond_the_members_is_told(self, project):
        run, _ = member_of(["--config", "pbt.yaml"], environ_of(0))
        with pytest.raises(HpcrlError, match="has the members 0 to 3, none for task 4"):
            member_of(["--population", str(run.parents[1])], environ_of(4))

    def test_a_population_that_is_gone_is_told_and_made_anew_by_nobody(self, project, monkeypatch):
        monkeypatch.setattr("hpcrl.launch.array_task._PATIENCE_SECONDS", 0.0)
        (project / "hpcrl_12.population").symlink_to("/gone/pbt_20260102_030405")
        with pytest.raises(HpcrlError, match=r"names the population of this array, .*, which is not there"):
            member_of(["--config", "pbt.yaml"], environ_of(0))
        assert not (project / "checkpoints").exists()

    def test_an_older_array_of_the_same_number_is_not_taken_for_this_one(self, project):
        run, _ = member_of(["--config", "pbt.yaml"], environ_of(0))
        Attempt.claim(RunDir(run), 1, {"job": "12_0", "restart_count": 0, "trigger": "user"})
        assert member_of(["--config", "pbt.yaml"], environ_of(0, SLURM_RESTART_COUNT="1"))[0] == run
        with pytest.raises(HpcrlError, match="another array of this number has trained"):
            member_of(["--config", "pbt.yaml"], environ_of(0))


class TestScript:
    """slurm/pbt.sbatch run by bash, with recorders for srun and hpcrl."""

    @pytest.fixture
    def repository(self, tmp_path) -> Repository:
        found = Repository(tmp_path / "clone")
        (found.bin / "python").write_text(
            textwrap.dedent("""\
                #!/usr/bin/env bash
                printf '%s\\n' "$@" > "$RECORDS/${2##*.}.called"
                env -0 > "$RECORDS/${2##*.}.environ"
                case $2 in *array_task) printf '%b' "$FOUND"; exit "${task_code:-0}" ;; esac
            """)
        )
        return found

    def run(self, repository, folder, *arguments: str, **environ: str):
        found = {"FOUND": "/a b/members/03\\n--set\\nx=y z\\n"} | environ_of(3) | environ
        return repository.run("pbt.sbatch", *arguments, cwd=folder, **found)

    def test_no_secret_travels(self):
        assert exported(SCRIPT) == list(EXPORT) and not late_directives(SCRIPT)

    def test_each_task_trains_its_member_with_the_words_that_it_was_given(self, repository, tmp_path):
        done = self.run(repository, tmp_path, SLURM_CPUS_PER_TASK="3", GPU_COUNT="1", **SECRETS)
        assert done.returncode == 0, done.stderr
        config = str(repository.path / "yaml/pbt.yaml")
        assert repository.called("array_task") == ["-m", "hpcrl.launch.array_task", "--config", config]
        assert repository.called("srun") == [
            "--cpus-per-task=3", "--kill-on-bad-exit=1", str(repository.bin / "hpcrl"), "train",
            "--config", "/a b/members/03/jobs/config.yaml", "--run", "/a b/members/03", "--set", "x=y z",
        ]  # fmt: skip
        environ = repository.environ("srun")
        assert environ["HPCRL_RUN"] == "/a b/members/03" and environ["OMP_NUM_THREADS"] == "3"
        assert not {*SECRETS, "GPU_COUNT"} & environ.keys() and CANARY not in done.stdout + done.stderr
        assert repository.environ("array_task")["GPU_COUNT"] == "1", "it says how many ranks members have"
        assert " job 12_3 attempt 1 on node[1-2]: member 3 of " in done.stdout
        assert repository.called("again") is None

    def test_a_member_is_verified_first_and_its_task_ends_where_that_fails(self, repository, tmp_path):
        done = self.run(repository, tmp_path, hpcrl_code="1")
        run = "/a b/members/03"
        wanted = ["verify", "--quick", "--pbt", "--config", f"{run}/jobs/config.yaml", "--run", run]
        assert repository.called("hpcrl") == wanted and repository.called("srun") is None
        assert done.returncode == 1 and "exit code 1\n" in done.stdout

    @pytest.mark.parametrize("option", ["--config=x", "--config", "--population"])
    def test_an_own_config_or_population_takes_its_place(self, repository, tmp_path, option):
        arguments = (option, "my own", "--set", "a='b'")
        assert self.run(repository, tmp_path, *arguments).returncode == 0
        assert repository.called("array_task")[2:] == list(arguments)

    @pytest.mark.parametrize("code", [0, 1, 2])
    def test_without_a_member_to_train_nothing_is_started(self, repository, tmp_path, code):
        done = self.run(repository, tmp_path, FOUND="", task_code=str(code))
        assert done.returncode == code and f"exit code {code}\n" in done.stdout
        assert repository.called("srun") is None and repository.called("again") is None

    @pytest.mark.parametrize("code", [0, 1, 2, 70, 75, 137])
    def test_a_crash_a_hang_or_a_stop_asks_whether_to_run_again_and_keeps_its_code(
        self, repository, tmp_path, code
    ):
        done = self.run(repository, tmp_path, srun_code=str(code))
        assert done.returncode == code and f"exit code {code}\n" in done.stdout
        wanted = ["-m", "hpcrl.launch.again", str(code)] if code in (70, 75, 137) else None
        assert repository.called("again") == wanted
        if wanted:
            assert repository.environ("again")["HPCRL_RUN"] == "/a b/members/03"
