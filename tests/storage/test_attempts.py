"""Attempts: numbers are claimed once, a stale one is fenced off, its late writes reach nobody."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from hpcrl.storage import attempts
from hpcrl.storage.attempts import (
    Attempt,
    Superseded,
    read_attempts,
    refuse_if_taken_over,
    run_of_job,
    who_begins,
)
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError, RunFailed

USER = {"job": None, "restart_count": 0, "trigger": "user"}
AGAIN = {"job": "7", "restart_count": 1, "trigger": "requeue"}


@pytest.fixture
def run(tmp_path) -> RunDir:
    return RunDir.create(tmp_path, "{}")


def checkpoint(folder: RunDir, epoch: int, mark: str) -> None:
    """What the manager leaves, in its order; the contents do not matter here."""
    for path in (folder.portable(epoch), folder.rank_state(epoch, 0), folder.manifest(epoch)):
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(mark)
        os.replace(temporary, path)


def began(run: RunDir, base: int | None, who: dict = USER, metrics: str = "") -> Attempt:
    attempt = Attempt.claim(run, 1, who)
    attempt.adopt()
    attempt.folder.metrics.write_text(metrics)
    attempt.take_over(base)
    return attempt


def shown(run: RunDir) -> dict[str, str]:
    return {p.name: p.read_text() for p in run.path.iterdir() if p.name.startswith(("checkpoint", "metrics"))}


def whole(epoch: int, mark: str) -> dict[str, str]:
    return {f"checkpoint_epoch_{epoch}{end}": mark for end in (".pt", ".rank_0.pt", ".json")}


def test_an_attempt_takes_over_the_history_and_the_run_folder_shows_it(run):
    first = began(run, None, metrics="1")
    checkpoint(first.folder, 4, "a")
    checkpoint(first.folder, 5, "a")
    first.publish()
    second = began(run, 5, AGAIN, metrics="2")
    assert second.record.number == 2 and second.source.path == first.folder.path
    assert shown(run) == whole(4, "a") | whole(5, "a") | {"metrics.jsonl": "2"}
    assert os.path.samefile(run.portable(5), second.folder.portable(5))
    assert not first.folder.manifest_epochs() and not first.folder.metrics.exists()
    checkpoint(second.folder, 6, "b")
    second.folder.manifest(4).unlink()
    second.publish()
    assert shown(run) == whole(5, "a") | whole(6, "b") | {"metrics.jsonl": "2"}


def test_a_stale_attempt_notices_and_nothing_it_writes_after_that_is_ever_taken(run):
    stale = began(run, None, metrics="old")
    checkpoint(stale.folder, 1, "good")
    stale.publish()
    newer = Attempt.claim(run, 1, AGAIN)
    for refused in (stale.check, stale.publish):
        with pytest.raises(Superseded, match=r"superseded by attempt 2 \(job 7, process \d+ on "):
            refused()
    newer.adopt()
    # Renames that a lost node asked for before it looked: they are carried out in its own folder.
    checkpoint(stale.folder, 1, "late")
    checkpoint(stale.folder, 2, "late")
    newer.folder.metrics.write_text("new")
    newer.take_over(1)
    checkpoint(stale.folder, 3, "later")
    stale.folder.metrics.write_text("later")
    assert shown(run) == whole(1, "good") | {"metrics.jsonl": "new"}
    third = began(run, 1, AGAIN, metrics="new")
    assert third.folder.manifest_epochs() == [1] and third.folder.portable(1).read_text() == "good"


def test_what_a_stale_attempt_shows_is_put_right_by_the_next_save(run):
    """It looked, was stopped for a while, and goes on in the middle of ``publish``."""
    stale = began(run, None, metrics="old")
    newer = began(run, None, AGAIN, metrics="new")
    checkpoint(newer.folder, 1, "new")
    newer.publish()
    checkpoint(stale.folder, 1, "late")
    stale.folder.metrics.write_text("late")
    stale.check = lambda: None  # type: ignore[method-assign]
    stale.publish()
    assert shown(run) == whole(1, "late") | {"metrics.jsonl": "late"}
    newer.publish()
    assert shown(run) == whole(1, "new") | {"metrics.jsonl": "new"}


def test_an_attempt_that_died_while_it_began_is_passed_over(run):
    first = began(run, None, metrics="1")
    checkpoint(first.folder, 2, "a")
    torn = Attempt.claim(run, 1, AGAIN)
    torn.adopt()
    torn.folder.manifest(2).write_text("torn")  # a link would be the first attempt's own file
    (run.path / "attempts/3").mkdir()  # and one that did not even say who it is
    third = began(run, 2, AGAIN)
    assert third.record.number == 4 and third.source.path == first.folder.path
    assert [a.number for a in read_attempts(run.path)] == [1, 2, 4]


def test_a_checkpoint_that_is_pruned_while_it_is_taken_over_is_left_out(run, monkeypatch):
    first = began(run, None)
    for epoch in (1, 2):
        checkpoint(first.folder, epoch, "a")
    link = os.link

    def pruned(source, target, **options):
        if Path(source).name == "checkpoint_epoch_1.rank_0.pt":
            raise FileNotFoundError(errno.ENOENT, "gone", str(source))
        link(source, target, **options)

    monkeypatch.setattr(os, "link", pruned)
    second = Attempt.claim(run, 1, AGAIN)
    second.adopt()
    assert second.folder.manifest_epochs() == [2]


def test_a_share_without_hard_links_is_copied_and_shown_by_symbolic_ones(run, monkeypatch):
    def no_links(*_arguments, **_options):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    first = began(run, None, metrics="1")
    checkpoint(first.folder, 1, "a")
    first.publish()
    assert run.portable(1).is_symlink() and shown(run) == whole(1, "a") | {"metrics.jsonl": "1"}
    second = began(run, 1, AGAIN, metrics="2")
    checkpoint(second.folder, 2, "b")
    second.publish()
    assert shown(run) == whole(1, "a") | whole(2, "b") | {"metrics.jsonl": "2"}


def test_a_folder_that_was_copied_without_its_attempts_can_go_on(run):
    checkpoint(run, 3, "a")
    first = began(run, 3, metrics="1")
    assert first.source.path == run.path and first.folder.manifest_epochs() == [3]
    assert shown(run) == whole(3, "a") | {"metrics.jsonl": "1"}


def claim_many(run: RunDir, count: int, out) -> None:
    out.put([Attempt.claim(run, 1, USER).record.number for _ in range(count)])


def test_no_number_is_claimed_twice(run):
    out = multiprocessing.get_context("fork").Queue()
    writers = [
        multiprocessing.get_context("fork").Process(target=claim_many, args=(run, 25, out)) for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    numbers = [number for _ in writers for number in out.get(timeout=60)]
    for writer in writers:
        writer.join(60)
    assert sorted(numbers) == list(range(1, 101))
    assert len({a.token for a in read_attempts(run.path)}) == 100


def ended(attempt: Attempt, reason: str) -> None:
    attempt.end(75 if reason.startswith("SIG") else 1, 0, reason)


def refused(run: RunDir, base: int | None, who: dict = AGAIN) -> bool:
    attempt = Attempt.claim(run, 1, who)
    attempt.adopt()
    try:
        attempt.refuse_if_fruitless(base)
    except RunFailed as error:
        assert "3 attempts in a row began after epoch" in str(error) and "hpcrl status" in str(error)
        return True
    attempt.folder.metrics.write_text("")
    attempt.take_over(base)
    return False


def test_three_attempts_in_a_row_without_a_new_checkpoint_are_enough(run):
    began(run, None)
    assert not refused(run, 0)
    assert not refused(run, 0)
    assert refused(run, 0)
    assert not refused(run, 0, USER), "a person may always try again"
    assert not refused(run, 0) and not refused(run, 0), "and has three more"
    assert refused(run, 0)


def test_a_new_checkpoint_ends_the_row(run):
    began(run, None)
    assert not refused(run, 0) and not refused(run, 0)
    assert not refused(run, 1), "the third one has saved"
    assert not refused(run, 1) and not refused(run, 1)
    assert refused(run, 1)


def test_attempts_that_were_told_to_leave_are_not_held_against_the_run(run):
    began(run, None)
    for _ in range(5):
        assert not refused(run, 0)
        newest = read_attempts(run.path)[-1]
        (newest.path / "end.json").write_text(json.dumps({"code": 75, "reason": "SIGTERM"}))
    assert not refused(run, 0), "the first one of them, and no other, ended without a word"


def test_a_time_limit_that_is_too_short_for_one_epoch_ends_the_row(run):
    began(run, None).end(75, 0, "SIGUSR2")
    for _ in range(2):
        assert not refused(run, 0)
        (read_attempts(run.path)[-1].path / "end.json").write_text('{"code": 75, "reason": "SIGUSR2"}')
    assert refused(run, 0)


@pytest.mark.parametrize(
    ("environ", "job", "trigger", "restarts"),
    [
        ({}, None, "user", 0),
        ({"SLURM_RESTART_COUNT": "2"}, None, "user", 0),
        ({"SLURM_RESTART_COUNT": "0"}, "3", "user", 0),
        ({"SLURM_RESTART_COUNT": "2"}, "3_1", "requeue", 2),
        ({"HPCRL_SUCCESSOR_OF": "2"}, "3", "successor", 0),
    ],
)
def test_who_begins_is_read_from_slurms_variables(environ, job, trigger, restarts):
    assert who_begins(environ, job) == {"job": job, "restart_count": restarts, "trigger": trigger}


def test_live_keys_and_the_geometry_are_kept(run):
    Attempt.claim(run, 1, USER | {"live": {"train.epochs": 9}, "nodes": 2, "gpus_per_node": None})
    (found,) = read_attempts(run.path)
    assert (found.live, found.nodes, found.gpus_per_node) == ({"train.epochs": 9}, 2, None)


def test_the_run_of_a_job_is_the_newest_that_it_trained(tmp_path):
    assert run_of_job(tmp_path, "7") is None
    older, newer, other = (RunDir.create(tmp_path, "{}") for _ in range(3))
    for folder, job in ((older, "7"), (newer, "7"), (other, "70")):
        Attempt.claim(folder, 1, AGAIN | {"job": job})
    assert run_of_job(tmp_path, "7") == newer.path
    Attempt.claim(newer, 1, USER)
    assert run_of_job(tmp_path, "7") == newer.path


def test_the_end_is_told_and_never_hides_what_went_wrong(run, monkeypatch):
    attempt = began(run, None)
    attempt.end(75, 3, "SIGTERM")
    (record,) = read_attempts(run.path)
    assert record.end is not None and record.end["code"] == 75 and record.end["epoch"] == 3

    def full(*_arguments):
        raise RunFailed("cannot write: no space left on device")

    monkeypatch.setattr(attempts, "write_json", full)
    attempt.end(1, 3, "failed")


def test_a_run_folder_that_cannot_be_written_is_one_line(run):
    (run.path / "attempts").write_text("in the way")
    with pytest.raises(RunFailed, match="attempts: cannot be read: Not a directory"):
        Attempt.claim(run, 1, USER)


def test_a_reserved_folder_begins_once(tmp_path):
    run = RunDir.reserve(tmp_path)
    assert not list(run.path.iterdir())
    run.begin("{}")
    assert run.config.read_text() == "{}"
    with pytest.raises(HpcrlError, match="holds a run already"):
        run.begin("{}")


def test_a_job_that_slurm_starts_again_leaves_a_run_alone_that_another_job_has_taken_over(run):
    refuse_if_taken_over(run.path, AGAIN, None)
    began(run, None, AGAIN)
    refuse_if_taken_over(run.path, AGAIN, None)
    refuse_if_taken_over(run.path, AGAIN | {"job": "8", "trigger": "successor"}, "7")
    # It was to resume the run, and lost its node before it came to claim an attempt.
    refuse_if_taken_over(run.path, AGAIN | {"job": "8"}, None)
    began(run, None, USER | {"job": "9"})
    for who, predecessor in ((AGAIN, None), (AGAIN | {"job": "8", "trigger": "successor"}, "7")):
        with pytest.raises(RunFailed, match=r"by another by now \(job 9, process"):
            refuse_if_taken_over(run.path, who, predecessor)
    refuse_if_taken_over(run.path, USER | {"job": "7"}, None)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1, "number": 2}'])
def test_nothing_is_begun_beside_an_attempt_whose_record_cannot_be_read(run, text):
    """Passing over it would begin from an older history, and in the end remove the newer one."""
    began(run, None, metrics="1")
    second = began(run, None, AGAIN, metrics="2")
    checkpoint(second.folder, 3, "b")
    second.publish()
    (second.folder.path / "attempt.json").write_text(text)
    with pytest.raises(RunFailed, match=r"attempts/2/attempt.json.*nothing was changed"):
        Attempt.claim(run, 1, USER)
    assert second.folder.manifest_epochs() == [3] and read_attempts(run.path)[-1].number == 1
    assert not (run.path / "attempts/3").exists()


def test_a_history_that_could_not_be_taken_stays_where_it_is(run):
    first = began(run, None, metrics="1")
    checkpoint(first.folder, 5, "a")
    second = Attempt.claim(run, 1, AGAIN)
    second.folder.metrics.write_text("2")
    second.take_over(None)  # it saw nothing there
    assert first.folder.manifest_epochs() == [5] and attempts.saved_anywhere(run) == {5}
    checkpoint(second.folder, 6, "b")
    began(run, 6, AGAIN)
    assert not first.folder.manifest_epochs() and attempts.saved_anywhere(run) == {6}


def test_a_folder_that_is_anothers_by_now_is_not_written_to(run):
    mine = began(run, None)
    value = json.loads((mine.record.path / "attempt.json").read_text())
    (mine.record.path / "attempt.json").write_text(json.dumps(value | {"token": "other"}))
    with pytest.raises(Superseded, match="another's by now"):
        mine.check()
    (mine.record.path / "attempt.json").write_text("torn for a moment")
    mine.check()


def test_a_save_that_prunes_what_is_being_taken_over_is_seen_in_a_second_look(run, monkeypatch):
    first = began(run, None)
    checkpoint(first.folder, 5, "a")
    second = Attempt.claim(run, 1, AGAIN)
    look = RunDir.manifest_epochs

    def late(folder):
        found = look(folder)
        if folder.path == first.folder.path and found == [5]:
            checkpoint(first.folder, 6, "a")  # it passed its check before the claim
            first.folder.manifest(5).unlink()
        return found

    monkeypatch.setattr(RunDir, "manifest_epochs", late)
    second.adopt()
    assert second.folder.manifest_epochs() == [6]


@pytest.mark.parametrize(
    ("key", "value"), [("live", 3), ("job", 7), ("number", "1"), ("ready", "yes"), ("base_epoch", [])]
)
def test_a_record_with_a_value_of_another_kind_is_no_record(run, key, value):
    attempt = began(run, None)
    file = attempt.record.path / "attempt.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert read_attempts(run.path) == []
    with pytest.raises(RunFailed, match=r"attempt\.json: is no record of an attempt; nothing was changed"):
        read_attempts(run.path, strict=True)


@pytest.mark.parametrize("end", [{}, {"code": "0", "epoch": 4}, {"code": 0, "epoch": "4"}])
def test_an_end_of_another_kind_is_none(run, end):
    attempt = began(run, None)
    (attempt.record.path / "end.json").write_text(json.dumps(end))
    assert [record.end for record in read_attempts(run.path)] == [None]
