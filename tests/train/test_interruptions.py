"""Nothing is lost: SIGKILL at random moments, Ctrl-C and TERM, broken checkpoints."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from runs import assert_same_course, command, comparable_metrics, environment, furnish, hpcrl, only_run

EPOCHS = 6


def start(arguments: list[str], cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process: subprocess.Popen, text: str) -> None:
    """Read the run's lines until one holds ``text``."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the run ended without saying {text!r}")


def kill_within(process: subprocess.Popen, seconds: float) -> bool:
    """SIGKILL after ``seconds``; False if the run had finished by then."""
    try:
        process.communicate(timeout=seconds)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True


@pytest.fixture(scope="session")
def course_seconds(tmp_path_factory, market_file) -> float:
    """From "Setting up" to the end of a whole run, on this machine, now."""
    folder = furnish(tmp_path_factory.mktemp("timing"), market_file)
    process = start(["train", "--config", "tiny.yaml"], folder)
    wait_for(process, "Setting up")
    begin = time.monotonic()
    process.communicate(timeout=200)
    return time.monotonic() - begin


def kill_and_resume(place: Path, reference: Path, seconds: float, seed: int, ranks: int = 1) -> None:
    """Kill a run and its resumptions at random moments; the course must equal the uninterrupted one's.

    With several ranks the launcher is killed, and they die with it.
    """
    moments = random.Random(seed)
    several = ["--ranks", str(ranks)] if ranks > 1 else []
    arguments = ["train", "--config", "tiny.yaml", *several]
    for _ in range(3):
        process = start(arguments, place)
        wait_for(process, "Setting up")
        killed = kill_within(process, moments.uniform(0, 0.9 * seconds))
        found = sorted(place.glob("checkpoints/dist_run_*"))
        assert len(found) <= 1
        if found:
            arguments = ["train", "--resume", str(found[0]), *several]
        if not killed:
            break
    hpcrl(*arguments, cwd=place)
    run = only_run(place)
    assert_same_course(run, reference, EPOCHS, ranks)
    assert not list(run.glob(".*.tmp")), "the finished run left temporary files"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1))
def test_a_killed_run_resumes_to_the_same_weights(place, reference, course_seconds, seed):
    kill_and_resume(place, reference, course_seconds, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 120))
def test_soak_twenty_killed_runs_resume_to_the_same_weights(place, reference, course_seconds, seed):
    kill_and_resume(place, reference, course_seconds, seed)


@pytest.fixture(scope="session")
def reference_of_two(tmp_path_factory, market_file) -> Path:
    folder = furnish(tmp_path_factory.mktemp("reference_of_two"), market_file)
    hpcrl("train", "--config", "tiny.yaml", "--ranks", "2", cwd=folder)
    return only_run(folder)


@pytest.mark.slow
def test_two_killed_ranks_resume_to_the_same_weights(place, reference_of_two, course_seconds):
    kill_and_resume(place, reference_of_two, 1.5 * course_seconds, 0, ranks=2)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(200, 205))
def test_soak_five_times_two_killed_ranks_resume_to_the_same_weights(
    place, reference_of_two, course_seconds, seed
):
    kill_and_resume(place, reference_of_two, 1.5 * course_seconds, seed, ranks=2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.soak), signal.SIGTERM])
def test_a_stop_saves_exits_75_and_prints_the_command_that_resumes(place, reference, number):
    process = start(["train", "--config", "tiny.yaml"], place)
    wait_for(process, "Epoch 2: Loss")
    process.send_signal(number)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 75, output
    run = only_run(place)
    assert f"hpcrl train --resume {run}" in output
    assert len(comparable_metrics(run)) < EPOCHS
    hpcrl("train", "--resume", str(run), cwd=place)
    assert_same_course(run, reference, EPOCHS)


@pytest.mark.slow
def test_a_stop_of_two_local_ranks_is_agreed_and_resumable(place):
    process = start(["train", "--config", "tiny.yaml", "--ranks", "2", "--set", "train.epochs=400"], place)
    wait_for(process, "Epoch 2: Loss")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 75, output
    assert "--ranks 2" in output
    run = only_run(place)
    finished = len(comparable_metrics(run))
    assert finished < 400
    sets = ["--set", f"train.epochs={finished + 1}"]
    hpcrl("train", "--resume", str(run), "--ranks", "2", *sets, cwd=place)
    assert [line["epoch"] for line in comparable_metrics(run)] == list(range(1, finished + 2))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "torn manifest"])
def test_a_broken_checkpoint_is_refused_by_name_and_the_last_good_one_is_taken(place, reference, damage):
    run = place / "checkpoints" / reference.name
    run.parent.mkdir()
    shutil.copytree(reference, run)
    own = run / "attempts" / "1"  # what the run folder shows is for people
    file = own / "checkpoint_epoch_6.pt"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "altered":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "missing":
        file = own / "checkpoint_epoch_6.rank_0.pt"
        file.unlink()
    else:
        file = own / "checkpoint_epoch_6.json"
        file.write_text(file.read_text()[:50])
    done = hpcrl("train", "--resume", str(run), cwd=place)
    assert file.name in done.stdout + done.stderr
    assert "Resumed after epoch 5" in done.stdout
    assert_same_course(run, reference, EPOCHS)


@pytest.mark.slow
def test_a_full_disk_while_saving_is_one_error_and_leaves_the_last_checkpoint(place, reference):
    """A limit on file size stands for the full disk: the write itself fails, as it would there."""
    run = place / "checkpoints" / reference.name
    run.parent.mkdir()
    shutil.copytree(reference, run)
    shell = (
        f"ulimit -f 20; exec {' '.join(command('train', '--resume', str(run), '--set', 'train.epochs=8'))}"
    )
    done = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; {shell}"],
        cwd=place, env=environment(), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "cannot write" in done.stderr and "checkpoint_epoch_7" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(run.glob(".*.tmp"))
    hpcrl("train", "--resume", str(run), "--set", "train.epochs=8", cwd=place)
    assert [line["epoch"] for line in comparable_metrics(run)] == list(range(1, 9))
