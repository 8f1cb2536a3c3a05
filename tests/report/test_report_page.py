"""The page as a whole: what it holds, what it says, what it refuses, and that it leaves the seal alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import runs
from made_populations import make_population
from report_runs import BOLD, EVIL, gpu_line, metrics_line, played_run, write_metrics, write_record

from hpcrl.evaluate.sealed import JOURNAL
from hpcrl.report.gather import find_target, gather
from hpcrl.report.report import write_report
from hpcrl.types import HpcrlError

MEGABYTE = 1e6


class Page(HTMLParser):
    """Elements, ids, visible texts and what is embedded; fails on a request that the page would make."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.ids, self.links, self.words = [], [], [], []
        self.inside, self.scripts = "", []
        self.html = path.read_text()
        self.feed(self.html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))
        self.charts = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[name] for name in ("src", "href", "action", "data", "srcset") if name in found]
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return played_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run):
    return Page(write_report(run, draws=4).path)


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    return make_population(tmp_path_factory.mktemp("population"), "pbt.members=4", generations=5)


SECTIONS = (
    "summary",
    "results",
    "symbols",
    "trades",
    "behaviour",
    "training",
    "machine",
    "data",
    "provenance",
)


def test_the_page_holds_every_part_once_and_needs_nothing_else(run, page):
    assert (run / "report_validation.html").stat().st_size < 2 * MEGABYTE
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") or link == "data:," for link in page.links), page.links
    assert not {"iframe", "object", "embed", "img", "audio", "video"} & set(page.tags)
    assert page.html.count("plotly.js (basic - minified)") == 1
    assert "default-src 'none'" in page.html
    for key in page.charts:
        assert page.html.count(f'data-chart="{key}"') == 1
    assert {"equity", "costs", "actions", "exposure", "lags", "trades-0", "trades-1", "speed"} <= set(
        page.charts
    )


def test_every_link_of_the_page_leads_to_a_part_of_it(page):
    assert all(link[1:] in page.ids for link in page.links if link.startswith("#"))


def test_every_chart_says_in_words_what_it_shows(page):
    boxes = re.findall(r'<div class="plot"[^>]*>', page.html)
    assert len(boxes) == len(page.charts)
    for box in boxes:
        assert 'role="img"' in box and len(re.search(r'aria-label="([^"]*)"', box)[1]) > 15


def test_made_up_bars_a_short_sample_and_luck_are_told(page):
    assert "made-up bars, no performance claim follows from this" in page.text
    assert re.search(
        r"A short sample: of \d sessions? an annual Sharpe ratio has a standard error", page.text
    )
    assert "Made-up bars: no claim follows" in page.text
    assert "There is no GPU timeline" in page.text


def test_validation_is_shown_and_the_test_split_stays_sealed(run, page):
    assert not (run.parent / JOURNAL).exists()
    assert "validation split" in page.text
    assert "The sealed test split was not opened for this page. So far it was opened 0 times" in page.text


def test_the_test_split_is_opened_when_asked_and_logged_once_for_each_page(tmp_path):
    run = played_run(tmp_path)
    first = write_report(run, "test", draws=2).path
    lines = (run.parent / JOURNAL).read_text().splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["run"] == run.name
    assert first.name == "report_test.html"
    assert "This page opened the sealed test split (opening 1 of this data set)" in Page(first).text
    again = Page(write_report(run, "test", draws=2).path)
    assert "has been opened 2 times" in again.text and "opening 2 of" in again.text
    assert "it was opened 2 times for this data set" in Page(write_report(run, draws=2).path).text
    assert len((run.parent / JOURNAL).read_text().splitlines()) == 2


def test_names_from_files_are_shown_and_never_run(tmp_path):
    run = played_run(tmp_path, symbols=(EVIL, BOLD))
    named = run.rename(run.with_name("<img src=x onerror=boom()>"))
    write_metrics(named, [metrics_line(1, **{f"action_share/{EVIL}": 0.1})])
    report = tmp_path / "data.report.json"
    report.write_text(report.read_text().replace("XNYS", EVIL))
    target = find_target(named)
    found = gather(target, "validation", draws=2)
    found.quality["dropped"] = {EVIL: {"count": 1, "rows": [{"symbol": BOLD, "what": "</script>" + EVIL}]}}
    from hpcrl.report.page import build_page

    (tmp_path / "p.html").write_text(build_page(found))
    page = Page(tmp_path / "p.html")
    assert len(page.scripts) == 4 and "img" not in page.tags and "b" not in page.tags
    assert EVIL in page.text and BOLD in page.text and "<img src=x onerror=boom()>" in page.text
    assert "<script>window" not in page.html


def test_a_password_in_a_path_or_in_the_staging_report_is_not_shown(tmp_path):
    run = played_run(tmp_path / "postgresql:/me:hunter2@db")
    report = run.parents[1] / "data.report.json"
    told = json.loads(report.read_text())
    where = "https://me:hunter2@h/x.csv line 3"
    told["dropped"] = {"off_grid": {"count": 1, "rows": [{"where": where, "what": "password=hunter2"}]}}
    report.write_text(json.dumps(told))
    page = Page(write_report(run, draws=2).path)
    assert "hunter2" not in page.html
    assert f"{tmp_path}/postgresql:/***@db/data.h5" in page.text and "https://***@h/x.csv line 3" in page.text
    for file in run.glob("checkpoint*"):
        file.unlink()
    assert "hunter2" not in Page(write_report(run, draws=2).path).html


@pytest.mark.parametrize("kind", ["whole", "member"])
def test_a_population_shows_its_course_and_its_best_member(population, kind, tmp_path):
    """Members that were never played: the page tells why there is no evaluation."""
    copy = tmp_path / "pbt_20260101_000000"
    shutil.copytree(population.path, copy)
    for folder in (copy / "members").iterdir():
        write_record(folder, tmp_path / "no.h5")
        write_metrics(folder, [metrics_line(1), metrics_line(2)])
    target = copy if kind == "whole" else copy / "members/01"
    written = write_report(target)
    page = Page(written.path)
    assert written.path.parent == target and "no whole checkpoint" in written.warning
    assert {"pbt-objective", "pbt-lineage", "pbt-learn-lr", "pbt-learn-gamma"} <= set(page.charts)
    assert "4 members, 5 of 12 generations" in page.text
    assert ("What follows below is its best member" in page.text) == (kind == "whole")
    assert ("This run is member 1." in page.text) == (kind == "member")


def test_a_run_that_was_killed_is_reported_as_far_as_it_got(tmp_path):
    run = played_run(tmp_path)
    lines = [json.dumps(metrics_line(epoch)) for epoch in (1, 2, 4, 5, 6)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"epoch": 7, "loss"')
    page = Page(write_report(run, draws=2).path)
    assert "metrics.jsonl lacks 1 epoch of 6" in page.text
    assert "checkpoint that was played is of epoch 4; training has reached 6" in page.text
    assert "Training is not finished: 6 of" in page.text
    for file in run.glob("checkpoint*"):
        file.unlink()
    written = write_report(run, draws=2)
    assert "no whole checkpoint" in written.warning
    page = Page(written.path)
    assert "No evaluation:" in page.text and "results" not in page.ids and "train-loss" in page.charts


def test_without_its_data_a_run_shows_its_training_and_says_what_to_do(tmp_path):
    run = played_run(tmp_path)
    moved = (tmp_path / "data.h5").rename(tmp_path / "moved.h5")
    written = write_report(run, draws=2)
    assert "give the file with --data" in written.warning and "equity" not in Page(written.path).charts
    again = write_report(run, data=moved, draws=2)
    assert again.path.name == "report_validation_moved.html" and "equity" in Page(again.path).charts


def test_an_agent_that_never_trades_is_no_crash(tmp_path):
    page = Page(write_report(played_run(tmp_path, always=1), draws=2).path)
    assert "It never traded" in page.text and "costs" not in page.charts
    assert not re.search(r"\b(nan|inf|NaN|Infinity)\b", page.text)


def test_one_account_over_all_symbols_has_a_row_for_each(tmp_path):
    page = Page(write_report(played_run(tmp_path, assets="all"), draws=2).path)
    assert "one account over 2 symbols" in page.text and "turnover, x equity" in page.text
    assert {"trades-0", "trades-1"} <= set(page.charts)


def test_a_gpus_figures_are_drawn(tmp_path):
    run = write_metrics(played_run(tmp_path), [gpu_line(1), gpu_line(2)])
    page = Page(write_report(run, draws=2).path)
    assert "gpu-utilisation" in page.charts and "There is no GPU timeline" not in page.text


def test_a_checkpoint_file_and_an_epoch_go_into_pages_of_their_own(run):
    file = run / "checkpoint_epoch_4.pt"
    assert write_report(file, draws=2).path == run / "report_validation_epoch_4.html"
    assert write_report(run, epoch=4, draws=2).path == run / "report_validation_epoch_4.html"


def test_alarms_and_the_staging_report_are_told(tmp_path):
    run = played_run(tmp_path)
    lines = [metrics_line(epoch, action_share_max=0.999, entropy=0.001) for epoch in (1, 2, 3, 4)]
    write_metrics(run, lines)
    report = tmp_path / "data.report.json"
    told = json.loads(report.read_text())
    told["dropped"] = {
        "off_grid": {"count": 1, "rows": [{"where": "line 3", "symbol": "AAA", "what": "odd"}]}
    }
    report.write_text(json.dumps(told))
    text = Page(write_report(run, draws=2).path).text
    assert "In training, 4 epochs, the last time: entropy collapse" in text
    assert "one action: 99.9%" in text
    assert "dropped: 1 off grid" in text and "line 3, AAA, odd" in text
    report.write_text("{torn")
    assert "the staging report could not be read" in Page(write_report(run, draws=2).path).text.lower()
    report.unlink()
    assert "No staging report lies beside the data file" in Page(write_report(run, draws=2).path).text


def test_the_command_prints_the_path_alone(run, hpcrl, tmp_path):
    code, out, err = hpcrl("report", run, "--out", "new/page.html")
    assert (code, out, err) == (0, "new/page.html\n", "")
    assert (tmp_path / "new/page.html").stat().st_size > MEGABYTE


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere",), "no such run folder"),
        (("empty",), "not a run folder"),
        (("RUN", "--split", "holdout"), "'holdout' is not known; a report shows one of validation, test"),
        (("RUN", "--split", "train"), "a report shows one of validation, test"),
        (("RUN", "--split", "test", "--epoch", "3"), "no checkpoint of epoch 3"),
        (("RUN", "--split", "test", "--out", "page.pdf"), "ends in .html"),
        (("RUN", "--split", "test", "--out", "folder.html"), "a folder"),
        (("RUN", "--split", "test", "--out", "file/page.html"), "is no folder"),
        (("RUN/config.json",), "a run folder or its checkpoint"),
        (("torn.pt",), "not a checkpoint file"),
        (("fresh",), "no whole checkpoint yet"),
        (("members",), "no member has published a generation yet: nothing to report"),
    ],
)
def test_bad_input_is_one_line_and_leaves_the_seal_and_the_disk_alone(run, tmp_path, hpcrl, arguments, says):
    copy = tmp_path / "RUN"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("*.html"))
    for name in ("empty", "folder.html", "fresh"):
        (tmp_path / name).mkdir()
    shutil.copy(run / "config.json", tmp_path / "fresh")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "torn.pt").write_bytes((run / "checkpoint_epoch_4.pt").read_bytes()[:500])
    if arguments == ("members",):
        late = make_population(tmp_path / "late", "pbt.members=2", late=(0, 1))
        arguments = (late.path,)
    before = sorted(map(str, tmp_path.rglob("*")))
    code, out, err = hpcrl("report", *arguments)
    assert code in (1, 2) and out == "" and err.count("\n") == 1 and says in err, err
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_page_that_cannot_be_written_leaves_the_one_before(run, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("before")

    def full(path, data):
        raise HpcrlError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("hpcrl.storage.atomic.write_bytes", full)
    with pytest.raises(HpcrlError, match="No space left"):
        write_report(run, out=page, draws=2)
    assert page.read_text() == "before" and [file.name for file in tmp_path.iterdir()] == ["page.html"]


OPEN = "import sys; from hpcrl.report.report import open_page, Path; print(open_page(Path(sys.argv[1])))"


@pytest.mark.slow
def test_open_shows_the_page_in_the_readers_browser_or_says_where_it_is(tmp_path):
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{tmp_path}/shown"\n')
    browser.chmod(0o755)

    def shown(**environment: str) -> str:
        command = [sys.executable, "-c", OPEN, str(tmp_path / "a page.html")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert shown(BROWSER=f"{browser} %s", PATH=os.environ["PATH"]).strip() == ""
    assert (tmp_path / "shown").read_text().strip() == (tmp_path / "a page.html").as_uri()
    assert f"open {tmp_path / 'a page.html'} in one" in shown(PATH="")


@pytest.mark.slow
def test_a_run_as_it_was_trained_is_reported_with_all_its_epochs(tmp_path, hpcrl):
    from hpcrl.market.stage import stage_synthetic

    stage_synthetic(tmp_path / "synthetic.h5", bars=700, symbols=("AAA",))
    runs.hpcrl("train", "--config", "tiny.yaml", cwd=runs.furnish(tmp_path, tmp_path / "synthetic.h5"))
    run = runs.only_run(tmp_path)
    code, out, err = hpcrl("report", run)
    assert code == 0 and err == "" and out == f"{run / 'report_validation.html'}\n"
    page = Page(run / "report_validation.html")
    assert page.charts["train-entropy"]["data"][0]["x"] == [1, 2, 3, 4, 5, 6]
    assert "no epoch" not in page.text and "training is not finished" not in page.text.lower()
    assert "Attempts" in page.text and "the start" in page.text
