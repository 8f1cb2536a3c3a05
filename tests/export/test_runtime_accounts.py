import math

import numpy as np
import pytest
import torch
from exported import EVERY_REWARD

from hpcrl.config.env import EnvConfig
from hpcrl.env import rewards as trained
from hpcrl.export.accounts import Account, Accounts, Marks
from hpcrl.export.rewards import Rewards, StepFacts
from hpcrl.types import HpcrlError

TERMS = [name for name in EVERY_REWARD if name != "eta"]


def config(**weights):
    return EnvConfig(rewards={"log_return": 0.0} | weights)


def facts(rng, n, known):
    simple = rng.normal(0, 2e-3, n)
    before = np.abs(rng.normal(0, 0.01, n))
    return StepFacts(
        log_return=np.log1p(simple),
        simple_return=simple,
        turnover=np.abs(rng.normal(0, 0.3, n)),
        drawdown_before=before,
        drawdown_after=np.abs(before + rng.normal(0, 2e-3, n)),
        sigma=np.full(n, 1e-3) if known else np.zeros(n),
    )


@pytest.mark.parametrize("terms", [*([name] for name in TERMS), TERMS])
@pytest.mark.parametrize("known", [True, False])
def test_every_reward_term_is_that_of_training(terms, known):
    chosen = config(**{name: EVERY_REWARD[name] for name in terms}, eta=0.05, crra_gamma=2.5)
    n, rng = 5, np.random.default_rng(0)
    mine = Rewards(chosen.model_dump()["rewards"], n)
    theirs = trained.Rewards(chosen.rewards, n, torch.device("cpu"))
    no_ruin = torch.zeros((n, 1), dtype=torch.bool)
    for _ in range(60):
        step = facts(rng, n, known)
        columns = {name: torch.from_numpy(value)[:, None] for name, value in step._asdict().items()}
        want = theirs.pay(trained.StepFacts(**columns, bankrupt=no_ruin))[:, 0].numpy()
        assert mine.pay(step) == pytest.approx(want, rel=1e-12, abs=1e-15)
        shown = [entry[:, 0].numpy() for entry in theirs.entries()]
        assert len(mine.entries()) == len(shown)
        for got, entry in zip(mine.entries(), shown, strict=True):
            assert got == pytest.approx(entry, rel=1e-12, abs=1e-15)


def test_gamma_1_is_the_logarithm():
    chosen = config(crra=1.0, crra_gamma=1.0).model_dump()["rewards"]
    step = facts(np.random.default_rng(0), 3, True)
    assert Rewards(chosen, 3).pay(step).tolist() == step.log_return.tolist()


def test_terms_that_this_version_does_not_know_are_refused():
    chosen = config(log_return=1.0).model_dump()["rewards"]
    with pytest.raises(HpcrlError, match="differ from this version's in omega"):
        Rewards(chosen | {"omega": 1.0}, 1)


def made(symbols=("A", "B"), **env):
    return Accounts([list(symbols)], EnvConfig(**env).model_dump(mode="json"))


def marks(close, opens=None, split=None, sigma=None):
    shape = (1, len(close))
    each = (
        close,
        close if opens is None else opens,
        split or [1.0] * len(close),
        sigma or [0.0] * len(close),
    )
    return Marks(*(np.array(values, dtype=float).reshape(shape) for values in each))


def entry(accounts, name, symbols=("A", "B")):
    names = [f"{part}:{s}" for part in ("weight", "profit", "age", "target") for s in symbols]
    return float(accounts.entries()[0, [*names, "cash", "drawdown", "reward"].index(name)])


def test_a_flat_account_begins_as_in_training():
    accounts = made()
    accounts.update([Account(5e4, 5e4)], marks([10.0, 20.0]))
    assert accounts.entries()[0].tolist() == [0.0] * 8 + [1.0, 0.0, 0.0]


def test_age_and_entry_follow_the_reports():
    """A position: entered at the open, added to, reduced, flipped."""
    accounts = made()
    accounts.update([Account(1000.0, 1000.0)], marks([10.0, 20.0]))
    quantities, opens = [10.0, 10.0, 20.0, 5.0, -5.0, -5.0, 0.0], [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0]
    price, seen = 12.5, []
    for quantity, opening in zip(quantities, opens, strict=True):
        accounts.update([Account(1000.0, 0.0, {"A": quantity})], marks([price, 20.0], [opening, 20.0]))
        age = math.expm1(entry(accounts, "age:A") / 0.2)
        profit = entry(accounts, "profit:A") / 10 * 1000
        seen.append((round(age), round(price - profit / quantity, 9) if quantity else None))
    # added to: the average of 10 at 10 and 10 at 12
    assert seen == [(0, 10.0), (1, 10.0), (2, 11.0), (3, 11.0), (0, 14.0), (1, 14.0), (0, None)]


def test_the_brokers_average_price_goes_before_the_derived_one():
    accounts = made()
    accounts.update([Account(1000.0, 900.0, {"A": 10.0}, {"A": 9.0})], marks([10.0, 20.0]))
    assert entry(accounts, "profit:A") == pytest.approx(10 * 10 / 1000)
    accounts.update([Account(1000.0, 900.0, {"A": 10.0})], marks([10.0, 20.0]))
    assert entry(accounts, "profit:A") == pytest.approx(10 * 10 / 1000)  # kept


def test_a_split_leaves_age_and_profit():
    accounts = made()
    accounts.update([Account(1000.0, 1000.0)], marks([10.0, 20.0]))
    accounts.update([Account(1000.0, 900.0, {"A": 10.0})], marks([11.0, 20.0], [10.0, 20.0]))
    before = entry(accounts, "profit:A")
    accounts.update([Account(1000.0, 900.0, {"A": 20.0})], marks([5.5, 20.0], [5.5, 20.0], [2.0, 1.0]))
    assert entry(accounts, "profit:A") == pytest.approx(before) and before > 0
    assert entry(accounts, "age:A") == pytest.approx(math.log(2) * 0.2)


def test_drawdown_and_reward_follow_equity():
    accounts = made()
    for equity in (1000.0, 1100.0, 990.0):
        accounts.update([Account(equity, equity)], marks([10.0, 20.0]))
    assert entry(accounts, "drawdown") == pytest.approx(0.1 * 10)
    assert entry(accounts, "reward") == -5.0  # ln(0.9) x 100, cut


def test_traded_value_is_derived_with_the_spread_or_taken_as_told():
    env = {"rewards": {"log_return": 0.0, "turnover": 1.0}, "costs": {"half_spread": 0.01, "slippage": 0.0}}
    for traded, turnover in ((None, 0.101), (250.0, 0.25)):
        accounts = made(**env)
        accounts.update([Account(1000.0, 1000.0)], marks([10.0, 20.0]))
        accounts.update([Account(1000.0, 900.0, {"A": 10.0}, traded=traded)], marks([10.0, 20.0]))
        assert entry(accounts, "reward") == pytest.approx(max(-turnover * 100, -5.0))
        assert accounts._now["reward"][0, 0] == pytest.approx(-turnover)


@pytest.mark.parametrize(
    ("account", "said"),
    [
        (Account(float("nan"), 1.0), "equity is nan; a finite number"),
        (Account(0.0, 1.0), "equity is 0; nothing is left"),
        (Account(-5.0, 1.0), "equity is -5; nothing is left"),
        (Account(1.0, float("inf")), "cash is inf"),
        (Account(1.0, 1.0, {"C": 1.0}), "positions name 'C', the policy trades A, B"),
        (Account(1.0, 1.0, {"A": float("nan")}), "positions of A is nan"),
        (Account(1.0, 1.0, {"A": 1.0}, {"A": -2.0}), "average_prices of A is -2.0"),
        (Account(1.0, 1.0, {}, {"D": 2.0}), "average_prices name 'D'"),
        (Account(1.0, 1.0, traded=-1.0), "traded is -1.0"),
    ],
)
def test_what_is_no_account_is_refused_by_name_and_value(account, said):
    with pytest.raises(HpcrlError, match=said):
        made().check(account, 0)
