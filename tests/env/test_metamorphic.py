"""What must hold for any bars and any options: changes of the input that may change nothing, or only so much.

Each property runs over random cases with every fill lag, both sizings, both limits, and costs by symbol.
"""

import copy
import math

import numpy as np
import pytest
import torch
from batches import Batch
from random_cases import random_case, random_config

from hpcrl.evaluate.case import read_case
from hpcrl.evaluate.replay import replay_case

PRICES = ("open", "high", "low", "close")
LAGS = (0, 1, 2)


def cases(lag, count=5, first=0, calm=None, **config):
    """Random cases with this lag; ``config`` overrides options, in the costs of single symbols too."""
    for seed in range(first, first + count):
        options, assets = random_config(seed)
        options |= {"fill_lag": lag} | config
        own = options.get("symbols", {})
        options["symbols"] = {a: {k: config.get(k, v) for k, v in costs.items()} for a, costs in own.items()}
        yield random_case(seed, options=(options, assets), calm=calm)


def scale(case, key, factor):
    """A cost of the case times a factor, for all symbols and for those with their own."""
    for place in (case["config"], *case["config"]["symbols"].values()):
        if place.get(key) is not None:
            place[key] = float(place[key]) * factor


def equity(rows):
    return np.array([row["equity"] for row in rows])


def assert_same_equity(one, two):
    """To 1e-10 of the account's start: a flip of a position leaves float noise of the positions' size."""
    assert [len(row["fills"]) for row in one] == [len(row["fills"]) for row in two]
    np.testing.assert_allclose(equity(one), equity(two), rtol=1e-10, atol=1e-10 * one[0]["equity"])


@pytest.mark.parametrize("lag", LAGS)
def test_future_bars_and_actions_change_nothing_of_the_past(lag):
    for case in cases(lag, bars_at := 12):
        changed = copy.deepcopy(case)
        for bar in changed["bars"][bars_at:]:
            for asset in case["assets"]:
                facts = bar[asset]
                facts.pop("delist", None)
                facts |= {key: float(facts[key]) * 1.7 for key in PRICES if facts.get(key)}
                facts |= {"volume": 12_345, "sigma": "0.03", "split": "3", "halted": False}
        for action in changed["actions"][bars_at:]:
            action.update(dict.fromkeys(action, "0.3"))
        before, after = replay_case(case)["rows"], replay_case(changed)["rows"]
        assert before[:bars_at] == after[:bars_at]
        assert before != after or len(before) <= bars_at
        changed = copy.deepcopy(case)
        changed["actions"][bars_at - 1 :] = [dict.fromkeys(case["assets"], "-0.4")] * (24 - bars_at)
        # decided at the close of bar 11: in the row of bar 12, with two bars' lag in that of bar 13
        seen = bars_at + (lag == 2)
        assert replay_case(changed)["rows"][:seen] == before[:seen]


@pytest.mark.parametrize("lag", LAGS)
def test_prices_times_a_constant_scale_the_quantities_only(lag):
    for case in cases(lag):
        scaled = copy.deepcopy(case)
        for bar in scaled["bars"]:
            for asset in case["assets"]:
                facts = bar[asset]
                keys = [k for k in (*PRICES, "dividend", "delist") if facts.get(k) is not None]
                facts |= {key: float(facts[key]) * 8 for key in keys}
                facts["volume"] = facts["volume"] / 8
        scale(scaled, "per_share", 8)
        scale(scaled, "lot", 1 / 8)
        before, after = replay_case(case)["rows"], replay_case(scaled)["rows"]
        assert_same_equity(before, after)
        assert [row["flags"] for row in before] == [row["flags"] for row in after]
        for one, two in zip(before, after, strict=True):
            for asset, quantity in one["position"].items():
                assert two["position"][asset] * 8 == pytest.approx(quantity, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("lag", LAGS)
def test_a_split_changes_nothing(lag):
    """But for what counts shares: whole lots and fees per share are off."""
    for case in cases(lag, lot="0", per_share="0"):
        at, split = 9, copy.deepcopy(case)
        for bar in split["bars"][at:]:
            facts = bar["A"]
            keys = [k for k in (*PRICES, "dividend", "delist") if facts.get(k) is not None]
            facts |= {key: float(facts[key]) / 4 for key in keys}
            facts["volume"] = facts["volume"] * 4
        facts = split["bars"][at]["A"]
        facts["split"] = 4 * float(facts.get("split", 1))
        before, after = replay_case(case)["rows"], replay_case(split)["rows"]
        assert_same_equity(before, after)
        for b, (one, two) in enumerate(zip(before, after, strict=True)):
            assert {*two["flags"]} == {*one["flags"]} | ({"split:A"} if b == at else set())


@pytest.mark.parametrize("lag", LAGS)
def test_zero_action_costs_nothing(lag):
    for case in cases(lag, credit_rate="0"):
        for action in case["actions"]:
            action.update(dict.fromkeys(action, 0))
        rows = replay_case(case)["rows"]
        assert len(rows) == len(case["bars"])
        for row in rows:
            assert row["equity"] == row["cash"] == float(case["config"]["initial_cash"])
            assert not row["fills"] and not any(row["position"].values())
            costs = ("fees", "spread_cost", "impact_cost", "financing", "dividends")
            assert not any(row[key] for key in costs) and not row["reward"]
            assert not any(flag.startswith(("no_fill", "margin", "bankrupt")) for flag in row["flags"])


COSTS = {
    "half_spread": 5e-4,
    "slippage": 5e-4,
    "impact_coef": 2.0,
    "per_share": 0.02,
    "min_fee": 1.0,
    "bps": 5.0,
    "debit_rate": 0.1,
    "borrow_rate": 0.1,
}


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("key", COSTS)
def test_higher_costs_never_help_a_fixed_table(key, lag):
    """In calm markets, without caps, lots and margin calls, which turn a loss into other trades."""
    fixed = {
        "initial_cash": "100000",
        "maintenance": "0",
        "participation": None,
        "lot": "0",
        "max_leverage": "1",
    }
    worse = 0
    for case in cases(lag, calm=0.004, **fixed):
        ends = []
        for cost in (0.0, COSTS[key], 4 * COSTS[key]):
            case["config"][key] = cost
            for own in case["config"]["symbols"].values():
                own.pop(key, None)
            rows = replay_case(case)["rows"]
            assert len(rows) == len(case["bars"])
            ends.append(rows[-1]["equity"])
        assert ends[0] >= ends[1] >= ends[2], (case["name"], ends)
        worse += ends[0] > ends[1] > ends[2]
    assert worse >= 2


@pytest.mark.parametrize("lag", LAGS)
def test_costs_of_its_own_touch_no_other_asset(lag):
    for case in (c for c in cases(lag, 30) if len(c["assets"]) == 3):
        case["config"]["symbols"] = {}
        dearer = copy.deepcopy(case)
        dearer["config"]["symbols"] = {"B": {"half_spread": "0.01", "min_fee": "7", "bps": "25"}}
        for action in dearer["actions"] + case["actions"]:
            action["B"] = 0
        assert_same_equity(replay_case(case)["rows"], replay_case(dearer)["rows"])
        same = {key: case["config"][key] for key in ("half_spread", "participation", "per_share", "min_fee")}
        dearer["config"]["symbols"] = {"A": same, "C": {}}
        assert_same_equity(replay_case(case)["rows"], replay_case(dearer)["rows"])


@pytest.mark.parametrize("lag", LAGS)
def test_order_of_assets_is_irrelevant(lag):
    several = [case for case in cases(lag, 30) if len(case["assets"]) > 1]
    assert len(several) > 5
    for case in several:
        turned = case | {"assets": case["assets"][::-1]}
        one, two = replay_case(case)["rows"], replay_case(turned)["rows"]
        assert_same_equity(one, two)
        assert [sorted(row["flags"]) for row in one] == [sorted(row["flags"]) for row in two]


@pytest.mark.parametrize("lag", LAGS)
def test_rewards_sum_to_the_log_growth_and_a_ledger_ends_with_bankruptcy(lag):
    bankrupt = 0
    for case in cases(lag, 20, calm=0.2, max_leverage="4", max_net=None, participation=None):
        rows = replay_case(case)["rows"]
        ruined = [any(flag.startswith("bankrupt") for flag in row["flags"]) for row in rows]
        assert not any(ruined[:-1])
        bankrupt += ruined[-1]
        alive = rows[:-1] if ruined[-1] else rows
        growth = math.log(alive[-1]["equity"] / alive[0]["equity"])
        assert sum(row["reward"] for row in alive[1:]) == pytest.approx(growth, abs=1e-12)
        if ruined[-1]:
            last = rows[-1]
            assert last["equity"] == 0 and last["cash"] == last["equity_raw"] <= 0
            assert last["reward"] == math.log(float(case["config"]["reward_floor"]))
            assert not any(last["position"].values())
    assert bankrupt > 3


@pytest.mark.parametrize("lag", LAGS)
def test_an_account_depends_on_no_other_by_one_bit(lag):
    """Whoever else is in the batch, and whatever they do or lose."""
    for seed in range(6):
        options, assets = random_config(seed)
        options |= {"fill_lag": lag, "max_leverage": "4"}
        together = [random_case(100 * seed + n, options=(options, assets)) for n in range(8)]
        others = [random_case(100 * seed + 50 + n, options=(options, assets)) for n in range(3)]
        kept = [1, 2, 4, 5, 7]
        mixed = [case if n in kept else others.pop() for n, case in enumerate(together)]
        alone = Batch([read_case(together[n]) for n in kept])
        runs = [Batch([read_case(case) for case in batch]) for batch in (together, mixed)]
        pick = torch.tensor(kept)
        for (_, _, few), (_, _, first), (_, _, second) in zip(
            *(b.steps() for b in (alone, *runs)), strict=True
        ):
            for x, y, z in zip(*([*o.account, *o[1:]] for o in (few, first, second)), strict=True):
                if isinstance(x, torch.Tensor):
                    assert torch.equal(bits(x), bits(y[pick])) and torch.equal(bits(x), bits(z[pick]))


def bits(value):
    """NaN, which marks no pending order, equals itself here."""
    return value.view(torch.int64) if value.dtype == torch.float64 else value


@pytest.mark.parametrize("lag", LAGS)
def test_three_constant_policies_give_three_ledgers(lag):
    for case in cases(lag, 6, lot="0", participation=None):
        ledgers = []
        for weight in (-1, 0, 1):
            case["actions"] = [dict.fromkeys(case["assets"], weight)] * len(case["actions"])
            ledgers.append([row["position"] for row in replay_case(case)["rows"]])
        assert ledgers[0] != ledgers[1] != ledgers[2] != ledgers[0]
