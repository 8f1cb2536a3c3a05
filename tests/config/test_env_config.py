"""The account's options: symbols with costs of their own, fill lags, limits, parameters of rewards."""

from pathlib import Path

import pytest

from hpcrl.config.env import EnvConfig, SymbolCosts
from hpcrl.config.load import load_config, validate
from hpcrl.env.bars import Rules
from hpcrl.types import HpcrlError

YAML = Path(__file__).resolve().parents[2] / "yaml"


def load(*sets, path=None):
    return load_config(path, overrides=sets, environment={})


@pytest.mark.parametrize(
    "path", sorted(set(YAML.glob("*.yaml")) - {YAML / "tables.yaml"}), ids=lambda path: path.stem
)
def test_every_shipped_yaml_loads(path):
    assert load(path=path).minibatches >= 1


def test_the_advanced_profile_shapes_the_reward_and_keeps_the_learners_discount():
    config = load(path=YAML / "advanced.yaml")
    active = {name for name, weight in config.env.rewards.weights.items() if weight}
    assert active == {"log_return", "turnover", "drawdown", "differential_sharpe", "potential"}
    assert config.env.rewards.potential_gamma == config.learn.gamma
    assert config.env.rewards.warmup == 250 < config.episode_steps


@pytest.mark.parametrize(
    ("item", "part"),
    [
        ("env.costs.symbols.MSFT.half_spred=1", "nearest valid key: env.costs.symbols.MSFT.half_spread"),
        ("env.costs.symbols.MSFT.bps=-1", "env.costs.symbols.MSFT.bps = -1"),
        ("env.costs.symbols.MSFT.credit_rate=0.1", "unknown key env.costs.symbols.MSFT.credit_rate"),
        ("env.costs.symbols.MSFT=3", "env.costs.symbols.MSFT = 3: expected a section of keys"),
        ("env.fill_lag=3", "env.fill_lag = 3: must be 0, 1 or 2"),
        ("env.fill_lag=true", "env.fill_lag = True: a whole number is needed"),
        ("env.max_net=0", "env.max_net = 0: must be greater than 0"),
        ("env.rewards.eta=1", "env.rewards.eta = 1: must be less than 1"),
        ("env.rewards.warmup_bars=-1", "env.rewards.warmup_bars = -1"),
        ("env.rewards.sharpe=1", "nearest valid key: env.rewards."),
        ("env.rewards={log_return: 0, eta: 0.1}", "every weight is 0"),
    ],
)
def test_a_mistake_names_key_value_and_what_is_right(item, part):
    with pytest.raises(HpcrlError) as caught:
        load(item)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_costs_of_a_symbol_keep_what_was_not_said_through_a_checkpoint():
    """Written out and read again, an override still overrides only what it named."""
    config = load("env.costs.symbols={BRK.B: {bps: 1, participation: null}}", "env.costs.half_spread=3e-4")
    again = validate(config.model_dump(mode="json"), "again")
    assert again == config and again.digest() == config.digest()
    assert again.model_dump()["env"]["costs"]["symbols"] == {"BRK.B": {"bps": 1.0, "participation": None}}
    own = Rules.from_config(again.env).of("BRK.B")
    assert (own.bps, own.participation, own.half_spread, own.per_share) == (1.0, None, 3e-4, 0.0035)
    assert Rules.from_config(again.env).of("OTHER").participation == 0.05


def test_symbol_costs_are_the_costs_less_the_accounts_rates():
    every = set(type(EnvConfig().costs).model_fields)
    assert every - set(SymbolCosts.model_fields) == {"credit_rate", "debit_rate", "symbols"}
