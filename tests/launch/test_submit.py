"""hpcrl submit without a cluster: what it refuses, what a dry run shows, what it keeps; no secret anywhere.

A stand-in for sbatch gives answers that are hard to get; the real one: tests/cluster/test_cluster_submit.py.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from launch.job_scripts import ROOT, executable

from hpcrl.launch.plan import SubmitRequest, make_plan
from hpcrl.launch.submit import submit_again
from hpcrl.storage.attempts import Attempt, who_begins
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError

TINY = {
    "train": {"world_size": 1, "epochs": 3},
    "env": {"envs_per_gpu": 2, "lot": 1},
    "policy": {"d_model": 16, "layers": 1, "heads": 1, "window": 8},
    "learn": {"rollout": 16, "sequence_length": 8, "batch_size": 16, "ppo_epochs": 1},
    "engine": {"precision": "fp32"},
}
CANARY = "canary-5b1e"
SECRETS = {
    "SUPABASE_URL": f"https://{CANARY}.supabase.co",
    "SUPABASE_SERVICE_ROLE_KEY": CANARY,
    "PGPASSWORD": CANARY,
    "DATABASE_URL": f"postgresql://me:{CANARY}@db/market",
}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with a config and something that passes for data, where hpcrl submit is called."""
    for name in ("HPCRL_SITE", "SLURM_CONF"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tiny.yaml").write_text(json.dumps(TINY))
    (tmp_path / "market.h5").touch()
    return tmp_path


@pytest.fixture
def submit(hpcrl, project):
    """``submit(options...) -> (exit code, stdout, stderr)`` of hpcrl submit with the tiny config."""
    return lambda *options: hpcrl(
        "submit", "--config", "tiny.yaml", "--set", "market.path=market.h5", *options
    )


@pytest.fixture
def sbatch(tmp_path_factory, monkeypatch):
    """``sbatch(out, err, code)``: from now on sbatch says this; returns the file that keeps its environment.

    JOB in ``out`` is 7, 8, ... Up to job ``accepts`` all are accepted before that.
    """
    folder = tmp_path_factory.mktemp("commands")

    def answer(out: str = "Submitted batch job JOB", err: str = "", code: int = 0, accepts: int = 0) -> Path:
        script = (
            f"#!/bin/bash\nenv -0 >{folder}/environ\necho >>{folder}/count\n"
            f"job=$((6 + $(wc -l <{folder}/count)))\n"
            f'[ $job -gt {accepts} ] || {{ echo "Submitted batch job $job"; exit 0; }}\n'
            f"sed \"s/JOB/$job/\" <<'EOF'\n{out}\nEOF\n"
            f"cat >&2 <<'EOF'\n{err}\nEOF\nexit {code}\n"
        )
        executable(folder / "sbatch", script)
        for other in ("srun", "scancel", "squeue", "sacct"):
            executable(folder / other, f'#!/bin/bash\necho "$@" >> {folder}/{other}.called\n')
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return folder / "environ"

    return answer


def left(project: Path) -> list[str]:
    return sorted(path.name for path in project.iterdir())


def test_a_dry_run_prints_the_script_and_makes_nothing(submit, project, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    code, out, err = submit("--dry-run")
    assert code == 0 and out.startswith("#!/bin/bash\n") and "\nsrun " in out
    assert err == "train: not checked: no sbatch on PATH\n" and left(project) == ["market.h5", "tiny.yaml"]


def test_a_dry_run_is_linted_where_sbatch_answers(submit, project, sbatch):
    sbatch(
        "", "sbatch: Job 3 to start at 2026-01-02T03:04:05 using 2 processors on nodes n1 in partition gpu"
    )
    code, _, err = submit("--dry-run")
    assert code == 0 and err.startswith("train: sbatch --test-only: Job 3 to start at 2026-01-02T03:04:05")
    sbatch("", "sbatch: error: invalid partition specified: none\nallocation failure: no", 1)
    code, _, err = submit("--dry-run")
    assert code == 2 and "sbatch refused the train job: invalid partition specified: none" in err
    assert left(project) == ["market.h5", "tiny.yaml"]


def test_a_chain_shows_each_script_with_what_it_waits_for(submit):
    chain = ("--chain", "stage,train,evaluate", "--stage", "synthetic --symbols 'A B'")
    code, out, _ = submit("--dry-run", *chain)
    assert code == 0 and out.count("#!/bin/bash") == 3 and out.count("--kill-on-invalid-dep=yes") == 2
    assert "--dependency=afterok:JOB_OF_STAGE" in out and "--dependency=afterok:JOB_OF_TRAIN" in out


def test_a_submission_keeps_what_is_needed_to_go_on(submit, project, sbatch):
    sbatch("Submitted batch job JOB on cluster c")
    code, out, err = submit("--set", "train.epochs=9", "--ranks", "4", "--json")
    assert code == 0 and "submitted train as job 7" in err, err
    (run,) = project.glob("checkpoints/dist_run_*")
    assert json.loads(out)["run"] == str(run) and json.loads(out)["jobs"][0]["id"] == "7"
    record = json.loads((run / "submission.json").read_text())
    assert record["format"] == 1 and record["folder"] == str(project) and record["requeue"] == "requeue"
    assert record["arguments"][:3] == ["submit", "--config", "tiny.yaml"] and record["code"]["git_commit"]
    (job,) = record["jobs"]
    assert job.items() >= {"id": "7", "kind": "train", "after": None, "successor_of": None}.items()
    assert (run / job["script"]).is_file() and job["log"] == "jobs/7_%t_log.out"
    config = yaml.safe_load((run / "jobs/config.yaml").read_text())
    assert config["train"] == config["train"] | {"epochs": 9, "world_size": 4}
    assert config["market"]["path"] == str(project / "market.h5")
    assert config["checkpoint"]["dir"] == str(run.parent) and not (run / "config.json").exists()
    delayed = pickle.loads((run / "jobs/7_submitted.pkl").read_bytes())
    assert f"{delayed.function.__module__}.{delayed.function.__name__}" == "hpcrl.launch.task.run"
    assert delayed.args == ("train", "--config", f"{run}/jobs/config.yaml", "--run", str(run))


def test_a_chain_is_recorded_by_kinds_and_what_each_waits_for(submit, project, sbatch):
    sbatch()
    code, _, err = submit("--chain", "stage,train,evaluate", "--no-wait")
    assert code == 0, err
    (path,) = project.glob("checkpoints/*/submission.json")
    jobs = [(job["id"], job["kind"], job["after"]) for job in json.loads(path.read_text())["jobs"]]
    assert jobs == [("7", "stage", None), ("8", "train", "7"), ("9", "evaluate", "8")]


def test_no_secret_is_in_anything_that_is_kept_or_handed_to_slurm(submit, project, sbatch, monkeypatch):
    environ = sbatch()
    for name, value in (SECRETS | {"SBATCH_EXPORT": "ALL", "SLURM_JOB_ID": "1", "SLURM_CONF": "/c"}).items():
        monkeypatch.setenv(name, value)
    (project / "my.env").write_text("".join(f"{name}={value}\n" for name, value in SECRETS.items()))
    (project / "my.env").chmod(0o600)
    (project / "site.yaml").write_text(f"env_file: {project}/my.env\n")
    options = ("--site", "site.yaml", "--chain", "stage,train,evaluate", "--no-wait")
    code, out, err = submit(*options)
    assert code == 0, err
    (run,) = project.glob("checkpoints/dist_run_*")
    kept = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert f"export HPCRL_ENV_FILE={project}/my.env".encode() in kept
    handed = environ.read_text()
    assert CANARY not in kept.decode(errors="replace") + handed + out + err
    names = {entry.partition("=")[0] for entry in handed.split("\0")}
    assert "SLURM_CONF" in names and not {*SECRETS, "SBATCH_EXPORT", "SLURM_JOB_ID"} & names
    assert os.environ["PGPASSWORD"] == CANARY, "this process's own environment is as it was"


@pytest.mark.parametrize(
    ("said", "code", "part"),
    [
        ("sbatch: error: invalid partition specified: x", 2, "see sinfo -s; the site's key is partition"),
        ("sbatch: error: Invalid account or account/partition combination", 2, "the site's keys are account"),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", 2, "the site's key is qos"),
        ("sbatch: error: Requested time limit is invalid (missing or exceeds some limit)", 2, "key is time"),
        ("sbatch: error: Invalid generic resource (gres) specification", 2, "the site's key is gres"),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller", 1, "sinfo tells"),
        ("sbatch: fatal: Unable to process configuration file", 1, "does not answer"),
        ("", 2, "it gave no reason"),
    ],
)
def test_a_refusal_is_one_line_with_what_to_do_and_leaves_nothing(submit, project, sbatch, said, code, part):
    sbatch("", said, 1)
    found, out, err = submit()
    assert found == code and part in err and err.count("\n") == 1 and "sbatch: " not in err and not out, err
    assert left(project) == ["market.h5", "tiny.yaml"]


def test_an_answer_without_a_job_id_is_a_refusal(submit, project, sbatch):
    sbatch("queued, maybe")
    code, _, err = submit()
    assert code == 2 and "queued, maybe" in err and left(project) == ["market.h5", "tiny.yaml"]


def test_a_refusal_leaves_a_resumed_run_as_it_was(submit, project, sbatch, hpcrl):
    environ = sbatch()
    assert submit()[0] == 0
    (run,) = project.glob("checkpoints/dist_run_*")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    sbatch("", "sbatch: error: no", 1)
    code, _, err = hpcrl("submit", "--resume", run, "--set", "train.epochs=5")
    assert code == 2 and "sbatch refused" in err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert not (environ.parent / "scancel.called").exists(), "the first job is none of this one's"


def test_a_run_that_somebody_trains_is_not_submitted_again(submit, project, sbatch, hpcrl):
    commands = sbatch().parent
    assert submit()[0] == 0
    (run,) = project.glob("checkpoints/dist_run_*")
    Attempt.claim(RunDir(run), 1, who_begins({}, None))  # by this process, outside Slurm
    code, _, err = hpcrl("submit", "--resume", run)
    assert code == 2 and f"attempt 1 trains it (process {os.getpid()} on " in err and err.count("\n") == 1
    assert (commands / "count").read_text() == "\n", "sbatch was called once"


def test_a_chain_that_is_refused_midway_is_cancelled_and_nothing_else(submit, project, sbatch, hpcrl):
    commands = sbatch("", "sbatch: error: no", 1, accepts=8).parent
    code, _, err = submit("--chain", "stage,train,evaluate")
    assert code == 2 and "sbatch refused the evaluate job: no" in err
    assert (commands / "scancel.called").read_text() == "7\n8\n"
    assert left(project) == ["market.h5", "tiny.yaml"]
    sbatch("", "sbatch: error: no", 1, accepts=11)
    assert submit()[0] == 0  # job 10
    (run,) = project.glob("checkpoints/dist_run_*")
    (commands / "scancel.called").unlink()
    code, _, err = hpcrl("submit", "--resume", run, "--chain", "train,evaluate")
    assert code == 2 and "sbatch refused the evaluate job: no" in err
    assert (commands / "scancel.called").read_text() == "11\n", "job 10 is of an earlier submission"


def test_a_folder_that_cannot_be_made_is_named(submit, project, sbatch):
    sbatch()
    code, _, err = submit("--set", "checkpoint.dir=market.h5/runs")
    assert code == 2 and "market.h5/runs: " in err and "market.h5 is no folder" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("bytes_left", "cancelled"),
    [(0, None), (2500, None), (30_000, "7\n8\n")],
    ids=["config", "script", "record"],
)
def test_a_full_disk_is_one_line_and_leaves_neither_file_nor_job(project, sbatch, bytes_left, cancelled):
    """By a limit on the size of files: 0 stops at the config, 2500 at the script, 30,000 at the record."""
    commands = sbatch().parent
    words = ["--set", "market.path=market.h5"] * (1000 if cancelled else 1)  # the record keeps them
    (project / "long.yaml").write_text(f"sbatch: {{comment: {'x' * 2500}}}")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, bytes_left))

    done = subprocess.run(
        [sys.executable, "-m", "hpcrl", "submit", "--config", "tiny.yaml", *words, "--site", "long.yaml",
         "--chain", "stage,train", "--no-wait"],
        cwd=project, preexec_fn=limit, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and "cannot write" in done.stderr and done.stderr.count("\n") == 1, (
        done.stderr
    )
    assert left(project) == ["long.yaml", "market.h5", "tiny.yaml"] and not done.stdout
    called = commands / "scancel.called"
    assert (called.read_text() if called.exists() else None) == cancelled


def test_without_slurm_it_says_what_works_here(submit, project, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = submit()
    assert code == 2 and "no sbatch on PATH" in err and "--local" in err and "--dry-run" in err
    assert left(project) == ["market.h5", "tiny.yaml"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--ranks", "9"], "train.world_size = 9 does not fit 2 nodes: a node takes at most gpus_per_node = "
         "8 ranks, all nodes the same number; use --nodes 3 (3 ranks on each), or --ranks 16"),
        (["--ranks", "16", "--nodes", "1"], "use --nodes 2 (8 ranks on each), or --ranks 8"),
        (["--ranks", "16", "--local"], "does not fit 1 node"),
        (["--set", "engine.device=cuda", "--site", "cpu.yaml"], "gres = none"),
        (["--set", "market.path=none.h5"], "none.h5: no such file; stage it first"),
        (["--set", "learn.lrr=1"], "learn.lr"),
        (["--set", "checkpoint.dir=100%done"], "checkpoint.dir = "),
        (["--site", "bad.yaml"], "site bad.yaml: unknown key partion = 'gpu'; nearest valid key: partition"),
        (["--site", "none.yaml"], "none.yaml: cannot be read"),
        (["--site", "venv.yaml"], "there is no /nowhere/bin/python"),
        (["--site", "env.yaml", "--chain", "stage,train"], "env_file = /nowhere/.env: no such file"),
        (["--init", "none"], "--init none: no such run folder"),
        (["--resume", "none"], "none: no such run folder"),
        (["--resume", "a\ntouch PWNED"], "a\\ntouch PWNED': %, \\, line breaks and other control"),
        (["--set", "checkpoint.dir=a\tb"], "a\\tb': %, \\, line breaks and other control characters"),
        (["--site", "venv_of.yaml"], "/nowhere\\n': line breaks and other control characters"),
        (["--take-over"], "give --resume RUN"),
        (["--take-over", "--resume", "none", "--chain", "evaluate"], "--take-over is for a training job"),
        (["--chain", "train,stage"], "expected some of stage,train,evaluate, in this order"),
        (["--chain", "train,trian"], "expected some of stage,train,evaluate"),
        (["--chain", "stage"], "sbatch slurm/stage.sbatch"),
        (["--chain", "evaluate"], "--resume RUN --chain evaluate"),
        (["--chain", ","], "--chain ',' holds no name"),
        (["--chain", "stage,train", "--stage", "supabase --symbol A"], "--stage: no such option: --symbol"),
        (["--chain", "stage,train", "--stage", "push x.csv"], "--stage push: expected one of supabase"),
        (["--chain", "stage,train", "--stage", "files"], "--stage: missing option '--path'"),
        (["--chain", "stage,train", "--stage", "synthetic --out x"], "leave --out out"),
        (["--chain", "stage,train", "--stage", "synthetic 'A"], "no closing quotation"),
        (["--chain", "stage,train", "--stage", "synthetic --help"], "--help is for"),
        (["--chain", "stage,train", "--stage", f"postgres --dsn postgresql://me:{CANARY}@db/x"], "--dsn"),
        (["--chain", "stage,train", "--stage", f"postgres --dsn 'host=db sslpassword={CANARY}'"], "--dsn"),
        (["--stage", "supabase"], "--stage is for a job of that kind, and --chain train has none"),
        (["--chain", "stage,train", "--evaluate", "--epoch 3"], "and --chain stage,train has none"),
        (["--set", f"market.path=postgresql://me:{CANARY}@db/x"], "an argument looks like a secret"),
        (["--chain", "train,evaluate", "--evaluate", "--split tset"], "--split tset: expected one of train,"),
        (["--chain", "train,evaluate", "--evaluate", "--epoch x"], "--evaluate: --epoch 'x': a whole number"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_makes_nothing(submit, project, monkeypatch, options, part):
    (project / "bad.yaml").write_text("partion: gpu")
    (project / "venv.yaml").write_text("venv: /nowhere")
    (project / "env.yaml").write_text("env_file: /nowhere/.env")
    (project / "cpu.yaml").write_text("gres: none")
    (project / "venv_of.yaml").write_text("venv: $ODD")
    monkeypatch.setenv("ODD", "/nowhere\n")
    before = left(project)
    code, out, err = submit(*options)
    assert code == 2 and part in err and err.count("\n") == 1 and CANARY not in err and not out, err
    assert left(project) == before


@pytest.mark.parametrize("name", ["hostile\ntouch PWNED #", "bell\a", "back\\slash"])
def test_a_folder_that_would_not_stay_one_word_of_the_script_is_refused(hpcrl, project, monkeypatch, name):
    (project / name).mkdir()
    monkeypatch.chdir(project / name)
    elsewhere = ("--set", f"market.path={project}/market.h5", "--set", f"checkpoint.dir={project}/runs")
    code, out, err = hpcrl("submit", "--config", "../tiny.yaml", *elsewhere, "--dry-run")
    assert code == 2 and not out and err.count("\n") == 1, err
    assert f"the folder of submission = {str(project / name)!r}" in err


def test_taking_over_is_handed_on_to_the_job_and_its_successors(submit, project, sbatch, hpcrl, monkeypatch):
    sbatch()
    assert submit()[0] == 0
    (run,) = project.glob("checkpoints/dist_run_*")
    code, _, err = hpcrl("submit", "--resume", run, "--take-over")
    assert code == 0, err
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert submit_again(run) == "9"
    for job, end in (
        (7, ("--run", str(run))),
        (8, (str(run), "--take-over")),
        (9, (str(run), "--take-over")),
    ):
        assert pickle.loads((run / f"jobs/{job}_submitted.pkl").read_bytes()).args[-2:] == end


@pytest.mark.parametrize(
    ("site", "options", "layout"),
    [
        ("", {"ranks": 8}, (1, 8)),
        ("", {"ranks": 16}, (2, 8)),
        ("gpus_per_node: 4", {"ranks": 12}, (3, 4)),
        ("gpus_per_node: 4", {"ranks": 6}, (2, 3)),
        ("nodes: 2", {"ranks": 8}, (2, 4)),
        ("nodes: 2", {"ranks": 8, "nodes": 4}, (4, 2)),
        ("", {}, (1, 1)),
    ],
)
def test_ranks_are_spread_evenly_over_the_fewest_nodes(project, monkeypatch, site, options, layout):
    monkeypatch.chdir(project)
    (project / "site.yaml").write_text(site)
    sets = ("market.path=market.h5",)
    plan = make_plan(SubmitRequest(Path("tiny.yaml"), sets, Path("site.yaml"), **options))
    assert (plan.site.nodes, plan.ranks_per_node) == layout
    assert plan.config.train.world_size == layout[0] * layout[1]


def test_training_mode_single_is_one_rank(project, monkeypatch):
    monkeypatch.chdir(project)
    sets = ("market.path=market.h5", "train.training_mode=single", "train.world_size=8")
    plan = make_plan(SubmitRequest(Path("tiny.yaml"), sets))
    assert (plan.site.nodes, plan.ranks_per_node, plan.config.train.world_size) == (1, 1, 1)


def resumable(project: Path, epochs: list[dict]) -> Path:
    """A run folder as hpcrl submit makes it, whose job never began, and its metrics."""
    run = RunDir.reserve(project / "checkpoints").path
    (run / "jobs").mkdir()
    sets = {"market": {"path": str(project / "market.h5")}}
    (run / "jobs/config.yaml").write_text(yaml.safe_dump(TINY | sets))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in epochs))
    return run


def test_the_warning_of_a_resumed_run_comes_from_its_longest_epoch(project, monkeypatch):
    """The metrics of a real run: test_submit_local.py."""
    monkeypatch.chdir(project)
    run = resumable(project, [{"epoch": 1, "time/epoch": 200.2}, {"epoch": 2, "time/epoch": 100.0}])
    plan = make_plan(SubmitRequest(resume=run))
    assert plan.site.signal_seconds == 401 + 60
    (project / "short.yaml").write_text('time: "5"')
    with pytest.raises(HpcrlError, match=r"time = 5: an epoch of dist_run_\d+_\d+ took 200 s"):
        make_plan(SubmitRequest(site=Path("short.yaml"), resume=run))
    assert make_plan(SubmitRequest(resume=resumable(project, []))).site.signal_seconds == 120


def test_the_warning_is_never_longer_than_slurm_allows(project, monkeypatch):
    monkeypatch.chdir(project)
    (project / "long.yaml").write_text('time: "7-00"')
    run = resumable(project, [{"epoch": 1, "time/epoch": 40_000.0}])
    assert make_plan(SubmitRequest(site=Path("long.yaml"), resume=run)).site.signal_seconds == 65_535


def test_a_resumed_run_keeps_its_site_unless_another_is_named(project, monkeypatch):
    monkeypatch.chdir(project)
    run = resumable(project, [])
    (run / "submission.json").write_text(
        '{"format": 1, "site": {"partition": "first", "nodes": 1}, "jobs": []}'
    )
    (project / "other.yaml").write_text("partition: other")
    assert make_plan(SubmitRequest(resume=run)).site.partition == "first"
    assert make_plan(SubmitRequest(site=Path("other.yaml"), resume=run)).site.partition == "other"
    assert make_plan(SubmitRequest(resume=run, ranks=16)).site.nodes == 2
    monkeypatch.setenv("HPCRL_SITE", str(project / "other.yaml"))
    assert make_plan(SubmitRequest(resume=run)).site.partition == "other"


@pytest.mark.parametrize(
    ("submission", "part"),
    [
        ("{}", "format None, this version reads format 1"),
        ('{"format": 1, "site": {}}', "jobs is missing, or no list of jobs"),
        ('{"format": 1, "site": {}, "jobs": [3]}', "jobs is missing, or no list of jobs"),
        ('{"format": 1, "jobs": []}', "site is missing or no object"),
    ],
)
def test_a_broken_submission_json_is_told(project, monkeypatch, submission, part):
    monkeypatch.chdir(project)
    run = resumable(project, [])
    (run / "submission.json").write_text(submission)
    with pytest.raises(HpcrlError, match=rf"submission\.json: .*{part}"):
        make_plan(SubmitRequest(resume=run))


def test_the_tool_is_the_verb(project):
    environ = {"PATH": "/nowhere", "HOME": str(project), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, ROOT / "tools/submit.py", "--config", "tiny.yaml", "--chain", "x"],
        cwd=project, env=environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: --chain x: ")


def test_a_dry_run_needs_neither_torch_nor_numpy(project):
    code = """
    import sys
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("torch", "deepspeed", "numpy", "pandas", "h5py", "matplotlib"):
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Absent())
    from hpcrl.cli import main
    main()
    """
    words = ("submit", "--config", "tiny.yaml", "--chain", "stage,train,evaluate", "--dry-run")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *words],
        cwd=project, capture_output=True, text=True, timeout=60,
        env={"PATH": "/nowhere", "HOME": str(project), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.count("#!/bin/bash") == 3, done.stderr
