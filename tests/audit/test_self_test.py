"""``hpcrl audit --self-test`` finds every leak that it plants, by the check meant for it."""

from __future__ import annotations

import json
import time

import pytest

from hpcrl.audit.self_test import self_test

FINDERS = {
    "feature shifted by -1": "features_causal",
    "centred window": "features_causal",
    "feature back-filled in its warm-up": "features_causal",
    "future high in the feature": "features_causal",
    "label in the feature": "features_causal",
    "VWAP of the whole session": "session_so_far",
    "resampling by right label": "features_causal",
    "feature standardised over the whole sample": "features_causal",
    "missing bars take the next bar's features": "marks_not_backfilled",
    "file staged by leaky code": "features_recomputed",
    "back-fill: missing bars marked at the next close": "marks_not_backfilled",
    "features divided by their whole-sample maximum": "observations_causal",
    "scaler of the whole sample": "scaler_train_only",
    "splits that overlap": "splits_purged",
    "splits without a purge": "splits_purged",
    "fill at the close just seen": "fills_after_decision",
    "fill at the open of the bar just seen": "fills_after_decision",
    "fill at the next bar's low": "fills_after_decision",
    "env.fill_lag = 0": "fills_after_decision",
    "observation of the next bar": "observations_causal",
    "next return in the observation": "observations_causal",
    "history of the episode before": "episodes_isolated",
    "running mean over episodes": "episodes_isolated",
    "observations centred over the batch": "episodes_isolated",
    "bars labelled by their end": "labelled_by_start",
    "one symbol's bars a bar late": "labelled_by_start",
    "source fills gaps from the next bar": "marks_not_backfilled",
    "column: next return": "source_columns",
    "column: next return and noise": "source_columns",
    "column: sign of the next 12 bars": "source_columns",
    "column: centred mean": "source_columns",
    "column: VWAP of the whole session": "source_columns",
    "column: next bar's high": "source_columns",
    "column: 15-minute close before it has closed": "source_columns",
    "column: label of the next 20 bars": "source_columns",
    "column: volatility of the next 12 bars": "source_columns",
    "column: RSI of the next bar": "source_columns",
    "column standardised over the whole sample": "source_columns",
}


@pytest.mark.slow
def test_every_planted_leak_is_found_and_nothing_in_clean_pipelines():
    began = time.process_time()
    report = self_test()
    assert time.process_time() - began < 60  # of work: the wall clock is the machine's
    found = {row["planted"]: row for row in report["rows"] if row["expected"] == "leak"}
    assert found.keys() == FINDERS.keys()
    missed = {
        name: found[name]["checks"] for name, check in FINDERS.items() if check not in found[name]["checks"]
    }
    assert missed == {}
    assert all(row["evidence"] for row in found.values())
    clean = [row for row in report["rows"] if row["expected"] == "clean"]
    assert len(clean) == 3 and all(row["ok"] and not row["checks"] for row in clean)
    assert report["passed"]


@pytest.mark.slow
def test_a_leak_that_is_not_found_fails_the_self_test(monkeypatch, hpcrl):
    from hpcrl.audit import audit, planted
    from hpcrl.audit import self_test as room

    missed = planted.Leak("nothing is wrong", case=lambda case: case)
    monkeypatch.setattr(room, "LEAKS", (missed, planted.LEAKS[0]))
    monkeypatch.setattr(room, "CLEAN", {})
    code, out, _ = hpcrl("audit", "--self-test", "--json")
    rows = json.loads(out)["rows"]
    assert code == 1 and [row["ok"] for row in rows] == [False, True]
    code, out, _ = hpcrl("audit", "--self-test")
    assert code == 1 and "NOT FOUND" in out and "1 of 2 planted leaks found" in out
    monkeypatch.setattr(room, "LEAKS", (planted.LEAKS[0],))
    monkeypatch.setattr(audit, "CHECKS", audit.CHECKS[:1])
    code, _, _ = hpcrl("audit", "--self-test")
    assert code == 1
