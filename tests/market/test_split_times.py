"""Splits by time in place of fractions: which rows they are, and what a config may say."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from hpcrl.config.load import load_config, validate
from hpcrl.config.market import MarketConfig
from hpcrl.config.root import tree_digest
from hpcrl.market.load import load_market
from hpcrl.market.splits import cut_between
from hpcrl.market.stage import stage_synthetic
from hpcrl.types import HpcrlError


def config(*sets: str):
    return load_config(None, sets, environment={})


def test_rows_between_two_times_with_the_purged_ones_left_out():
    ts = np.arange(0, 1000, 10)  # row r starts at second 10 r
    parts = cut_between(ts, 5, {"train": (0, 400), "validation": (400, 600), "test": (600, 2000)})
    assert parts == {"train": (5, 40), "validation": (42, 60), "test": (62, 100)}
    apart = cut_between(ts, 5, {"train": (95, 400), "test": (500, 800)}, fill_lag=2)
    assert apart == {"train": (10, 40), "validation": (40, 40), "test": (50, 80)}
    near = cut_between(ts, 5, {"train": (0, 400), "test": (410, 800)}, fill_lag=4)
    assert near["test"] == (45, 80)


def test_times_beyond_the_data_leave_a_part_empty():
    ts = np.arange(0, 1000, 10)
    parts = cut_between(ts, 5, {"train": (0, 5000), "validation": (5000, 6000), "test": (6000, 7000)})
    assert parts == {"train": (5, 100), "validation": (100, 100), "test": (100, 100)}
    assert cut_between(ts, 30, {"train": (0, 200), "test": (200, 400)})["train"] == (30, 30)


def test_a_market_is_cut_by_them_and_by_fractions_elsewhere(tmp_path):
    path = tmp_path / "m.h5"
    stage_synthetic(path, symbols=("AAA",), bars=400)
    whole = load_market(MarketConfig(path=str(path)))
    stamp = [datetime.fromtimestamp(int(whole.ts_B[row]), UTC) for row in (450, 550, 620)]
    own = load_market(
        MarketConfig(path=str(path), train_between=(stamp[0], stamp[1]), test_between=(stamp[1], stamp[2]))
    )
    assert own.split_range("train") == (450, 550) and own.split_range("test") == (552, 620)
    assert own.split_range("validation") == (550, 550)
    lo = int(whole.first_bar_S.min())
    assert whole.split_range("train") == (lo, lo + 280) and not whole.between


def test_equal_times_are_equal_configs_however_they_are_written():
    one = config(
        "market.train_between=[2024-01-01,2024-02-01]", "market.test_between=[2024-02-01,2024-03-01]"
    )
    two = config(
        "market.train_between=['2024-01-01T01:00:00+01:00','2024-02-01T00:00Z']",
        "market.test_between=[2024-02-01,2024-03-01]",
    )
    assert one == two and one.digest() == two.digest() != config().digest()
    assert validate(one.model_dump(mode="json"), "again") == one


def test_configs_without_them_keep_their_digest():
    """Runs recorded before these keys existed are known by it."""
    tree = config().model_dump(mode="json")
    older = tree | {"market": {k: v for k, v in tree["market"].items() if not k.endswith("_between")}}
    assert len(older["market"]) == len(tree["market"]) - 3
    assert tree_digest(older) == config().digest() == tree_digest(tree)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["market.train_between=[2024-01-01]"], "two times are needed"),
        (["market.train_between=[2024-01-02,2024-01-01]"], "is not before"),
        (["market.train_between=[2024-01-01,2024-01-02]"], "goes with test_between"),
        (["market.validation_between=[2024-01-01,2024-01-02]"], "goes with train_between"),
        (
            ["market.train_between=[2024-01-01,2024-02-02]", "market.test_between=[2024-02-01,2024-03-01]"],
            "follow each other",
        ),
        (["market.train_between=[soon,later]"], "train_between"),
        (["market.train_between=['0001-01-01T00:00+05:00',2024-01-01]"], "years 1 to 9999"),
    ],
)
def test_bad_times_are_one_clear_line(sets, said):
    with pytest.raises(HpcrlError, match=said) as found:
        config(*sets)
    assert "\n" not in str(found.value)
