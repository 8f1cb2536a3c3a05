"""Hyperparameters: where members begin, how they move, and that nothing leaves its bounds."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from population_cases import new_population
from scipy import stats

from hpcrl.config.load import load_config, validate
from hpcrl.config.pbt import Hyperparameter, PbtConfig
from hpcrl.config.root import Config, flatten
from hpcrl.pbt.mutate import START, draw, explore, perturb, seed_of, start, stream, values_of
from hpcrl.pbt.population import member_config
from hpcrl.types import HpcrlError

LR = Hyperparameter(low=1e-5, high=3e-3, scale="log")
GAMMA = Hyperparameter(low=0.9, high=0.999, scale="one_minus")
CLIP = Hyperparameter(low=0.05, high=0.4)
EPOCHS = Hyperparameter(low=1, high=8)
SPACE = {
    "learn.lr": LR,
    "learn.gamma": GAMMA,
    "learn.clip_param": CLIP,
    "learn.ppo_epochs": EPOCHS,
    "env.rewards.turnover": Hyperparameter(low=-2, high=-0.5),
}
DONOR = {
    "learn.lr": 3e-4,
    "learn.gamma": 0.99,
    "learn.clip_param": 0.2,
    "learn.ppo_epochs": 4,
    "env.rewards.turnover": -1.0,
}


def pbt(**other: object) -> PbtConfig:
    return PbtConfig.model_validate({"space": SPACE} | other)


def test_a_stream_is_of_one_member_generation_and_purpose_alone():
    told = {
        (seed, member, generation, purpose): stream(seed, member, generation, purpose).random()
        for seed in (0, 1)
        for member in (0, 1)
        for generation in (0, 1)
        for purpose in (0, 1)
    }
    assert len(set(told.values())) == len(told)
    assert all(stream(*key).random() == value for key, value in told.items())


def test_streams_are_the_same_bits_on_every_machine_and_in_every_version():
    """Else a population that is years old could not be verified."""
    assert stream(5, 3, 12).random() == 0.32967853784047807
    assert stream(5, 3, 0, START).random() == 0.7118248657721978
    assert [seed_of(5, member) for member in range(3)] == [5, 1898245334, 1613061882]


def test_a_perturbed_donor_moves_by_one_of_the_factors_on_each_keys_scale():
    seen: dict[str, set[float]] = {key: set() for key in DONOR}
    for generation in range(50):
        found = explore(DONOR, pbt(), stream(0, 0, generation))
        for key, value in found.items():
            seen[key].add(round(value, 12))
    assert seen["learn.lr"] == {2.4e-4, 3.6e-4}
    assert seen["learn.gamma"] == {0.992, 0.988}
    assert seen["learn.clip_param"] == {0.16, 0.24}
    assert seen["learn.ppo_epochs"] == {3, 5}
    assert seen["env.rewards.turnover"] == {-0.8, -1.2}


def test_factors_are_drawn_evenly_and_for_each_key_by_itself():
    found = [explore(DONOR, pbt(factors=(0.5, 1.0, 2.0)), stream(0, 1, g)) for g in range(3_000)]
    for key, factor in (("learn.lr", 0.5), ("learn.lr", 2.0), ("learn.clip_param", 0.5)):
        count = sum(values[key] == DONOR[key] * factor for values in found)
        low, high = stats.binom.interval(0.999, len(found), 1 / 3)
        assert low <= count <= high
    both = sum(v["learn.lr"] > 3e-4 and v["learn.clip_param"] > 0.2 for v in found)
    low, high = stats.binom.interval(0.999, len(found), 1 / 9)
    assert low <= both <= high


def test_what_one_key_draws_says_nothing_about_the_others():
    """A key that is left out takes only its own two numbers with it, if it is the last one."""
    last = list(SPACE)[-1]
    fewer = pbt(space={key: bounds for key, bounds in SPACE.items() if key != last})
    for explore_by in ("perturb", "resample"):
        whole = explore(DONOR, pbt(explore=explore_by), stream(0, 0, 1))
        assert explore(DONOR, fewer.model_copy(update={"explore": explore_by}), stream(0, 0, 1)) == {
            key: value for key, value in whole.items() if key != last
        }
    used, fresh = stream(0, 0, 1), stream(0, 0, 1)
    explore(DONOR, pbt(explore="resample"), used)
    fresh.random(2 * len(SPACE))
    assert used.bit_generator.state == fresh.bit_generator.state


def test_resample_draws_anew_with_its_probability_and_perturbs_else():
    always = [
        explore(DONOR, pbt(explore="resample", resample_probability=1), stream(0, 2, g)) for g in range(2)
    ]
    assert always[0]["learn.lr"] not in (2.4e-4, 3.6e-4) and always[0] != always[1]
    never = explore(DONOR, pbt(explore="resample", resample_probability=0), stream(0, 2, 0))
    assert never == explore(DONOR, pbt(), stream(0, 2, 0))
    found = [explore(DONOR, pbt(explore="resample"), stream(0, 3, g))["learn.lr"] for g in range(2_000)]
    anew = sum(not math.isclose(value, 2.4e-4) and not math.isclose(value, 3.6e-4) for value in found)
    low, high = stats.binom.interval(0.999, 2_000, 0.25)
    assert low <= anew <= high


@pytest.mark.parametrize(
    ("bounds", "middle"),
    [
        (LR, math.sqrt(1e-5 * 3e-3)),
        (GAMMA, 1 - math.sqrt(0.1 * 0.001)),
        (CLIP, 0.225),
        (Hyperparameter(low=-2, high=-0.5), -1.25),
    ],
    ids=["log", "one minus", "linear", "below zero"],
)
def test_draws_are_even_on_the_keys_scale_and_between_its_bounds(bounds, middle):
    assert draw(bounds, 0.5) == pytest.approx(middle)
    ends = sorted((draw(bounds, 0.0), draw(bounds, 1 - 2**-53)))
    assert ends == pytest.approx([bounds.low, bounds.high])
    u = stream(1, 1, 1).random(2_000)
    drawn = [draw(bounds, each) for each in u]
    below = sum(value < middle for value in drawn)
    low, high = stats.binom.interval(0.999, 2_000, 0.5)
    assert low <= below <= high


def test_a_value_at_its_bound_stays_within():
    at_bounds = {
        "learn.lr": 3e-3, "learn.gamma": 0.999, "learn.clip_param": 0.05, "learn.ppo_epochs": 8,
        "env.rewards.turnover": -2.0,
    }  # fmt: skip
    seen = [explore(at_bounds, pbt(), stream(0, 4, g)) for g in range(60)]
    assert {values["learn.lr"] for values in seen} == {3e-3, 3e-3 * 0.8}
    assert {values["learn.gamma"] for values in seen} == {0.999, 1 - (1 - 0.999) * 1.2}
    assert {values["learn.clip_param"] for values in seen} == {0.05, 0.05 * 1.2}
    assert {values["learn.ppo_epochs"] for values in seen} == {8, 6}
    assert {values["env.rewards.turnover"] for values in seen} == {-2.0, -1.6}


@pytest.mark.parametrize(
    ("value", "factor", "moved"),
    [(1, 1.2, 2), (2, 1.2, 3), (2, 0.8, 1), (3, 1.2, 3.6), (4, 0.8, 3.2), (10, 1.2, 12), (4, 1.0, 4)],
)
def test_a_whole_number_moves_by_one_at_least(value, factor, moved):
    assert perturb("learn.ppo_epochs", value, EPOCHS, factor) == pytest.approx(moved)
    assert perturb("learn.lr", value, LR, factor) == pytest.approx(value * factor)


def wander(count: int) -> int:
    """So many mutations, each of the one before, in spaces of every kind; values that are out of bounds."""
    narrow = {
        "learn.lr": {"low": 2.9e-4, "high": 3.1e-4, "scale": "log"},
        "learn.gamma": {"low": 0.98999, "high": 0.990001, "scale": "one_minus"},
        "learn.ppo_epochs": {"low": 2.5, "high": 5.5},
        "learn.gae_lambda": {"low": 0, "high": 1},
    }
    kinds = [
        pbt(),
        pbt(explore="resample"),
        pbt(space=narrow),
        pbt(space=narrow, explore="resample", resample_probability=0.5),
        pbt(factors=(1e-9, 0.5, 1.0, 1e9)),
    ]
    outside = done = 0
    for number, kind in enumerate(kinds):
        values = {key: 0.9 if key == "learn.gae_lambda" else DONOR[key] for key in kind.space}
        rng = stream(9, number, 0)
        for _ in range(count // len(kinds)):
            values = explore(values, kind, rng)
            done += 1
            assert values.keys() == kind.space.keys() and type(values["learn.ppo_epochs"]) is int
            outside += sum(
                not kind.space[key].low <= value <= kind.space[key].high for key, value in values.items()
            )
    assert done == count
    return outside


def test_ten_thousand_mutations_stay_within_bounds():
    assert wander(10_000) == 0


@pytest.mark.soak
def test_a_million_mutations_stay_within_bounds(record_property):
    outside = wander(1_000_000)
    record_property("mutations out of bounds, of 1,000,000", outside)
    assert outside == 0


def test_the_first_member_begins_with_the_configs_values_and_the_others_within_bounds():
    many = pbt(members=200)
    starts = [start(DONOR, many, 5, member) for member in range(200)]
    assert starts[0] == DONOR and starts[1] != starts[2]
    for values in starts:
        assert all(SPACE[key].low <= value <= SPACE[key].high for key, value in values.items())
        assert type(values["learn.ppo_epochs"]) is int
    assert {values["learn.ppo_epochs"] for values in starts} == set(range(1, 9))
    assert len({values["learn.lr"] for values in starts}) == 200
    assert start(DONOR, pbt(spread_start=False), 5, 7) == DONOR


def test_few_members_cover_each_scale_evenly():
    few = pbt(members=6)
    starts = [start(DONOR, few, 5, member) for member in range(1, 6)]
    for key in ("learn.lr", "learn.clip_param"):
        cuts = [draw(SPACE[key], part / 5) for part in range(6)]
        found = np.searchsorted(cuts, [values[key] for values in starts])
        assert sorted(found) == [1, 2, 3, 4, 5]


def test_members_are_made_with_the_seed_and_the_start_that_they_are_recorded_with(tmp_path):
    population = new_population(tmp_path, members=12)
    seeds = set()
    for member in population.members:
        own = load_config(population.folder(member) / "jobs/config.yaml", environment={})
        start_of = population.start(member)
        assert {key: flatten(own.model_dump(mode="json"))[key] for key in start_of} == start_of
        assert own == member_config(population.config, member)
        seeds.add(own.train.seed)
    assert len(seeds) == 12 and population.start(0)["learn.lr"] == 3e-4


def with_space(space: dict, **sections: dict) -> Config:
    return validate({"pbt": {"space": space}} | sections, "test")


def test_values_are_read_by_their_dotted_keys():
    space = {
        "learn.lr": {},
        "learn.ppo_epochs": {"low": 1, "high": 8},
        "env.rewards.turnover": {"low": 1, "high": 2},
    }
    found = values_of(with_space(space, env={"rewards": {"turnover": 1.5}}))
    assert found == {"learn.lr": 3e-4, "learn.ppo_epochs": 4, "env.rewards.turnover": 1.5}


@pytest.mark.parametrize(
    ("space", "sections", "message"),
    [
        (
            {"learn.lr": {"low": 1e-3, "high": 1e-2}},
            {},
            "learn.lr = 0.0003 is outside its bounds, 0.001 to 0.01",
        ),
        (
            {"learn.value_clip": {"low": 0.1, "high": 1}},
            {},
            "learn.value_clip = None has no value to begin with",
        ),
        (
            {"env.rewards.turnover": {"low": 0, "high": 1}},
            {},
            "env.rewards.turnover = 0: that reward is switched off",
        ),
        (
            {"env.rewards.turnover": {"low": -1, "high": 1}},
            {"env": {"rewards": {"turnover": 0.5}}},
            "env.rewards.turnover: its bounds must leave 0 out",
        ),
    ],
    ids=["outside", "null", "switched off", "could switch off"],
)
def test_a_start_that_is_none_is_refused_by_name(space, sections, message):
    with pytest.raises(HpcrlError) as error:
        values_of(with_space(space, **sections))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "bounds", "message"),
    [
        (
            "learn.lr",
            {"high": 2},
            "learn.lr cannot go as far as its bound 2: learn.lr = 2.0: must be less",
        ),
        ("learn.gae_lambda", {"low": -1, "high": 1}, "learn.gae_lambda cannot go as far as its bound -1: "),
        ("learn.ppo_epochs", {"low": 0, "high": 8}, "learn.ppo_epochs cannot go as far as its bound 0: "),
        ("learn.ppo_epochs", {"low": 0.5, "high": 8.5}, ""),
    ],
)
def test_bounds_that_the_config_does_not_allow_are_refused_before_anybody_begins(
    tmp_path, key, bounds, message
):
    space = {"learn.gamma": {}, key: bounds}
    if message:
        with pytest.raises(HpcrlError, match=f"^pbt.space: {re.escape(message)}"):
            new_population(tmp_path, space=space)
        assert list(tmp_path.iterdir()) == []
    else:
        assert new_population(tmp_path, space=space).start(1)[key] in range(1, 9)


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_gamma_moves_through_its_horizon(factor):
    assert 1 / (1 - perturb("learn.gamma", 0.99, GAMMA, factor)) == pytest.approx(100 / factor)


def test_values_are_numbers_that_json_keeps_exactly():
    for generation in range(100):
        found = explore(DONOR, pbt(explore="resample"), stream(0, 0, generation))
        assert json.loads(json.dumps(found)) == found and all(np.isfinite(list(found.values())))
