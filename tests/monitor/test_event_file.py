"""TensorBoard files: they say what metrics.jsonl says, of the newest attempt alone, and cost no run."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
from event_file import epochs_in, read_events
from tensorboardX.proto.event_pb2 import SessionLog

from hpcrl.monitor.metrics import MetricsFile, read_metrics
from hpcrl.monitor.tensorboard import EventFile
from hpcrl.storage.attempts import Attempt, Superseded, who_begins
from hpcrl.storage.run_dir import RunDir


def line(epoch: int, **more: object) -> dict:
    return {"epoch": epoch, "env_steps": 128 * epoch, "reward": epoch / 7, "time/unix": 1.7e9 + epoch} | more


@pytest.fixture
def said() -> list[str]:
    return []


def test_every_finite_number_is_a_scalar_of_its_epoch_at_the_time_it_ended(tmp_path, said):
    file = EventFile(tmp_path / "x.events", [], said.append)
    nothing = {"nan": float("nan"), "inf": -float("inf"), "none": None, "huge": 1e300, "yes": True}
    file.write(line(3, **{"action_share/-1": 0.25}, **nothing, data_source="files", throttles=["heat"]))
    event = read_events(tmp_path / "x.events")[-1]
    assert (event.step, event.wall_time) == (3, 1.7e9 + 3)
    found = {value.tag: value.simple_value for value in event.summary.value}
    assert found == {"env_steps": 384, "reward": pytest.approx(3 / 7), "action_share/-1": 0.25}
    assert not said


def test_alarms_are_a_text_below_one_another(tmp_path, said):
    EventFile(tmp_path / "x.events", [line(1, alarms=["one: a", "two: b"])], said.append)
    (text,) = [v for v in read_events(tmp_path / "x.events")[-1].summary.value if v.tag.startswith("alarms")]
    assert text.metadata.plugin_data.plugin_name == "text"
    assert text.tensor.string_val == [b"- one: a\n- two: b"]


def test_a_file_begins_with_what_lets_a_running_tensorboard_forget_lost_epochs(tmp_path, said):
    EventFile(tmp_path / "x.events", [line(1), line(2)], said.append).write(line(3))
    version, start, *epochs = read_events(tmp_path / "x.events")
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (SessionLog.START, 0)
    assert [event.step for event in epochs] == [1, 2, 3]


def test_an_epoch_is_on_disk_when_the_write_returns(tmp_path):
    """A process that ends itself at once, as its watchdog or SIGKILL would end it."""
    code = (
        "import os, sys; from pathlib import Path; from hpcrl.monitor.tensorboard import EventFile\n"
        "EventFile(Path(sys.argv[1]), [], print).write({'epoch': 1, 'reward': 0.5}); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.events")], check=True, timeout=60)
    assert [event.step for event in read_events(tmp_path / "x.events")[2:]] == [1]


def began(run: RunDir, after: int, say, events: bool = True) -> tuple[Attempt, MetricsFile]:
    """As ``Session.take_over`` begins an attempt."""
    attempt = Attempt.claim(run, 1, who_begins({}, None))
    log = MetricsFile(attempt.folder.metrics, after, attempt.source.metrics, attempt.check)
    if events:
        log.also = EventFile(attempt.folder.events, log.kept, say).write
    attempt.take_over(after)
    return attempt, log


def shown(run: RunDir) -> list[tuple[int, float]]:
    return [(step, round(values["reward"], 4)) for step, values in epochs_in(run.path)]


@pytest.mark.parametrize("links", [True, False])
def test_tensorboard_finds_a_run_once_with_the_newest_attempts_whole_history(
    tmp_path, said, monkeypatch, links
):
    def no_links(*_arguments, **_options):
        raise OSError("a share without hard links")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    run = RunDir.create(tmp_path, "{}")
    first, log = began(run, 0, said.append)
    for epoch in (1, 2, 3):
        log.append(line(epoch))
    assert shown(run) == [(1, 0.1429), (2, 0.2857), (3, 0.4286)]
    _, after = began(run, 2, said.append)  # epoch 3 was not saved
    after.append(line(3, reward=0.5))
    with pytest.raises(Superseded):
        log.append(line(4))
    log.also(line(4))  # a write of the old one that comes late
    assert shown(run) == [(1, 0.1429), (2, 0.2857), (3, 0.5)]
    assert not first.folder.events.exists() and run.shown_events(2).is_symlink() != links
    began(run, 3, said.append)
    assert shown(run) == [(1, 0.1429), (2, 0.2857), (3, 0.5)] and not said


def test_what_a_stale_attempt_shows_is_put_right_by_the_next_save(tmp_path, said):
    """It looked, was stopped for a while, and goes on in the middle of ``publish``."""
    run = RunDir.create(tmp_path, "{}")
    stale, _ = began(run, 0, said.append)
    newer, log = began(run, 0, said.append)
    log.append(line(1))
    EventFile(stale.folder.events, [line(7)], said.append)
    stale.check = lambda: None  # type: ignore[method-assign]
    stale.publish()
    assert [step for step, _ in shown(run)] == [7]
    newer.publish()
    assert [step for step, _ in shown(run)] == [1]


def test_an_attempt_without_events_shows_none_and_the_next_has_all_again(tmp_path, said):
    run = RunDir.create(tmp_path, "{}")
    began(run, 0, said.append)[1].append(line(1))
    began(run, 1, said.append, events=False)[1].append(line(2))
    assert not list(run.path.rglob("*tfevents*"))
    began(run, 2, said.append)
    assert [step for step, _ in shown(run)] == [1, 2]


@pytest.mark.parametrize("fault", ["full disk", "no folder", "a folder in its place", "no package"])
def test_a_file_that_cannot_be_begun_is_told_once_and_the_run_goes_on(tmp_path, said, monkeypatch, fault):
    path = tmp_path / ("gone/x.events" if fault == "no folder" else "x.events")
    if fault == "full disk":
        path.symlink_to("/dev/full")
    elif fault == "a folder in its place":
        path.mkdir()
    elif fault == "no package":
        monkeypatch.setitem(sys.modules, "tensorboardX.record_writer", None)
    log = MetricsFile(tmp_path / "metrics.jsonl", 0)
    log.also = EventFile(path, [line(1)], said.append).write
    for epoch in (2, 3):
        log.append(line(epoch))
    (told,) = said
    why = {
        "full disk": "No space left on device",
        "no folder": "No such file",
        "no package": "ImportError|Module",
    }
    assert told.startswith(f"WARNING: {path}: cannot be written: ") and "metrics.jsonl has everything" in told
    assert any(word in told for word in why.get(fault, "Is a directory").split("|"))
    assert [each["epoch"] for each in read_metrics(log.path)] == [2, 3]


def test_a_disk_that_fills_up_on_the_way_is_told_once_and_what_is_there_can_be_read(tmp_path, said):
    file = EventFile(tmp_path / "x.events", [], said.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        for epoch in range(1, 40):
            file.write(line(epoch))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.write(line(40))
    assert len(said) == 1 and "File too large" in said[0]
    whole = (tmp_path / "x.events").read_bytes()
    assert len(whole) == 1500, "the last record is torn, as TensorBoard bears"
