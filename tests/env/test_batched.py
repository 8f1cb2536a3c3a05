"""A batch of accounts against the scalar Decimal reference and the golden ledgers."""

import json
from pathlib import Path

import pytest
import torch
from batches import Batch
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_compare import assert_same
from random_cases import ASSETS, OPTIONS, OWN_COSTS, random_case, random_config
from reference import Ledger

from hpcrl.evaluate.case import read_case
from hpcrl.evaluate.replay import _start_row, replay_case

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("[0-9]*.json"))
TOGETHER = 10


def compare_with_reference(got: list[dict], case: dict) -> None:
    expected = Ledger(case).run()
    # float64 cannot tell a cash of 1e-9 from 0 when 1e6 moved: absolute errors are measured against
    # a ten-thousandth of the initial cash
    assert_same(got, expected, case["name"], floor=max(1.0, float(expected[0]["cash"]) * 1e-4))


def compare_batch(seed: int) -> None:
    """Ten episodes with other bars and weights under the same options, in one batch."""
    options = random_config(seed)
    cases = [random_case(TOGETHER * seed + n, options=options) for n in range(TOGETHER)]
    for case, got in zip(cases, Batch([read_case(case) for case in cases]).ledgers(), strict=True):
        compare_with_reference(got, case)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_reference_reproduces_the_golden_ledgers(path):
    case = json.loads(path.read_text())
    assert_same(Ledger(case).run(), case["expected"])


@pytest.mark.parametrize("seed", range(30))
def test_random_episodes_in_batches_equal_the_decimal_reference(seed):
    compare_batch(seed)


@pytest.mark.soak
@pytest.mark.parametrize("block", range(10))
def test_3000_random_episodes_in_batches_equal_the_decimal_reference(block, record_property):
    for seed in range(100 + 30 * block, 130 + 30 * block):
        compare_batch(seed)
    record_property(f"episodes in batches against the Decimal reference, block {block}", 30 * TOGETHER)


OWN = st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in OWN_COSTS.items()})
CONFIG = st.fixed_dictionaries(
    {key: st.sampled_from(choices) for key, choices in OPTIONS.items()},
    optional={"symbols": st.dictionaries(st.sampled_from(ASSETS[:2]), OWN, max_size=2)},
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(config=CONFIG, seed=st.integers(0, 10**6))
def test_any_options_on_any_bars_equal_the_decimal_reference(config, seed):
    case = random_case(seed, bars=14, options=(config, ASSETS[:2]))
    compare_with_reference(replay_case(case)["rows"], case)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_64_copies_of_a_golden_case_among_others_give_its_ledger(path):
    """Every third environment has other prices and weights; the copies agree bit for bit."""
    case = json.loads(path.read_text())
    parsed = read_case(case)
    batch, other_N = Batch([parsed] * 96), torch.arange(96) % 3 == 1
    g = torch.Generator().manual_seed(5)
    table_NRK = batch.packed.table_RK.view(96, -1, batch.packed.table_RK.shape[1])
    table_NRK[other_N] *= 1 + 0.3 * torch.rand(table_NRK[other_N].shape, generator=g, dtype=torch.float64)
    batch.weight_NTA[other_N] = torch.randn(batch.weight_NTA[other_N].shape, generator=g, dtype=torch.float64)
    copies = (~other_N).nonzero()[:, 0]
    assert len(copies) == 64
    rows, differ = [_start_row(parsed)], False
    for b, before, outcome in batch.steps():
        for field in (*outcome.account, *outcome[1:]):
            if isinstance(field, torch.Tensor):
                assert torch.equal(field[copies], field[copies[:1]].expand_as(field[copies]))
        rows.append(batch.row(int(copies[-1]), b, before, outcome))
        differ |= bool((outcome.account.equity_N1[other_N] != outcome.account.equity_N1[copies[0]]).all())
        if outcome.bankrupt_N1[copies[0]]:
            break
    assert differ
    assert_same(rows, case["expected"])
