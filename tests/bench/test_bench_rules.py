"""``hpcrl bench rules``: what it measures, what it says, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hpcrl.bench.rules import against_peer, bench_rules, numbers, render
from hpcrl.types import HpcrlError, RunFailed

TINY = {"bars": 300, "rounds": 2}


@pytest.fixture(autouse=True)
def no_peers(tmp_path, monkeypatch):
    """A folder without an environment of peers."""
    monkeypatch.chdir(tmp_path)


def peer_python(path: Path, last_equity: str) -> Path:
    """What stands in for vectorbt's Python: it answers with fixed rates and the given last equities."""
    path.write_text(
        f"""#!{sys.executable}
import json
rates = dict.fromkeys(("from_orders", "from_signals", "from_orders_equity", "from_signals_equity"), 10.0)
tables = [dict(rates, columns=1, last_equity={last_equity}, every_bar=dict(rates, last_equity=[1.0]))]
print(json.dumps(dict(version="1", pandas="2", tables=tables)))
"""
    )
    path.chmod(0o755)
    return path


def test_rates_of_every_number_of_columns():
    result = bench_rules((1, 7), **TINY)
    assert [row["columns"] for row in result["ours"]] == [1, 7]
    for row in result["ours"]:
        assert (
            min(row["equity"], row["every_flow"], row["default_costs"], row["every_bar"]) > 0
            and len(row["rounds"]) == 2
        )
        assert row["orders"] >= 3 * row["columns"]
    assert result["machine"]["threads"] == 1 and result["peer"] is None
    assert render(result).row_count == 4 and len(render(result).columns) == 3


def test_the_ratio_is_the_median_of_ratios_within_a_round():
    ours = [{"columns": 5, "rounds": [100.0, 30.0, 90.0], "rounds_every_bar": [8.0, 9.0, 2.0]}]
    names = ("from_orders", "from_signals", "from_orders_equity", "from_signals_equity")
    rows = [(4.0, 5.0, 2.0, 1.0), (2.0, 1.0, 1.0, 1.0), (3.0, 9.0, 3.0, 9.0)]
    rounds = [
        {"version": "1", "pandas": "2", "tables": [same | {"every_bar": same}]}
        for same in (dict(zip(names, row, strict=True)) for row in rows)
    ]
    (table,) = against_peer(ours, rounds)["tables"]
    assert table["ratio_without_its_equity"] == 15.0  # of 100/5, 30/2, 90/9
    assert table["ratio"] == 30.0  # of 100/2, 30/1, 90/9
    assert table["from_signals"] == 5.0
    assert table["ratio_every_bar_without"] == 2.0  # of 8/4, 9/2, 2/3


def test_a_peer_that_ends_elsewhere_is_no_peer(tmp_path):
    with pytest.raises(RunFailed, match=r"column 0 of 1 ends at .* here and at 99\.0 in vectorbt"):
        bench_rules((1,), bars=300, rounds=1, peers=peer_python(tmp_path / "python", "[99.0]"))


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ((0, 5), {}, "columns is 0; at least 1"),
        ((), {}, "columns is 0; at least 1"),
        ((1,), {"rounds": 0}, "rounds is 0; at least 1"),
        ((1,), {"threads": -1}, "threads is -1; at least 1"),
        ((1,), {"bars": 299}, "299 bars; at least 300"),
        ((1,), {"peers": Path("nowhere/python")}, "nowhere/python is not there; make peers"),
    ],
)
def test_a_number_that_cannot_be_measured_is_refused(columns, options, message):
    with pytest.raises(HpcrlError, match=message):
        bench_rules(columns, **options)


def test_numbers_are_read_or_refused():
    assert numbers("1,100") == (1, 100)
    with pytest.raises(HpcrlError, match="--columns 1,many: whole numbers"):
        numbers("1,many")


def test_a_python_without_the_peer_is_named_with_its_own_last_word():
    with pytest.raises(RunFailed, match=r"did not run in .*python.*: ModuleNotFoundError.*vectorbt"):
        bench_rules((1,), bars=300, rounds=1, peers=Path(sys.executable))
