"""The single environment: Gymnasium's and SB3's checkers, seeds, starts, ends, refusals, copies."""

import copy
import math
import pickle
import re
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gym_markets import FREE, RECKLESS
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import hpcrl
from hpcrl.config.env import EnvConfig
from hpcrl.env.gymnasium import HpcrlTradingEnv
from hpcrl.market.scaler import fit_scaler
from hpcrl.types import HpcrlError

KINDS = [(assets, action) for assets in ("single", "all") for action in ("discrete", "continuous")]


def make(path, assets="single", env=None, **settings):
    return HpcrlTradingEnv(path, env={"assets": assets, **(env or {})}, episode_steps=40, **settings)


def play(env, actions):
    """Everything that a list of actions brings, until the episode's end."""
    found = []
    for action in actions:
        found.append(env.step(action))
        if found[-1][2] or found[-1][3]:
            break
    return found


def assert_same(one, two):
    """Observations, rewards, ends and infos of two plays, bit for bit."""
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:4] == b[1:4]
        assert a[4].keys() == b[4].keys()
        for name in a[4]:
            np.testing.assert_array_equal(a[4][name], b[4][name])


@pytest.mark.parametrize(("assets", "action"), KINDS)
def test_both_checkers_pass_without_a_warning(planted_path, assets, action):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = {"path": planted_path, "env": {"assets": assets}, "action": action, "episode_steps": 40}
        check_env(gymnasium.make(hpcrl.ENV_ID, **settings).unwrapped)
        env = gymnasium.make(hpcrl.ENV_ID, render_mode="rgb_array", **settings)
        check_env(env.unwrapped)
        check_env_sb3(env.unwrapped, skip_render_check=False)
        env.reset(seed=1)
        env.step(env.action_space.sample())


@pytest.mark.parametrize(
    ("imports", "name"),
    [
        ("gymnasium, hpcrl", "hpcrl/Trading-v0"),
        ("hpcrl, gymnasium", "hpcrl/Trading-v0"),
        ("gymnasium", "hpcrl:hpcrl/Trading-v0"),
    ],
)
def test_the_registered_name_makes_it_and_loads_torch_only_then(planted_path, imports, name):
    code = (
        f"import sys, {imports}\n"
        "assert 'torch' not in sys.modules\n"
        f"env = gymnasium.make({name!r}, path={str(planted_path)!r})\n"
        "assert env.reset(seed=0)[0].shape == env.observation_space.shape\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("assets", ["single", "all"])
def test_the_seed_decides_the_episodes_and_changes_them(planted_path, assets):
    env = make(planted_path, assets)
    plan = [env.action_space.sample() for _ in range(40)]
    rows, plays = [], []
    for seed in (5, 5, 6):
        rows.append([env.reset(seed=seed)[1]["bar"]] + [env.reset()[1]["bar"] for _ in range(6)])
        env.reset(seed=seed)
        plays.append(play(env, plan))
    assert rows[0] == rows[1] != rows[2] and len(set(rows[0])) > 3
    assert_same(plays[0], plays[1])
    # without a seed, two environments differ
    free = [[make(planted_path, assets).reset()[1]["bar"] for _ in range(8)] for _ in range(2)]
    assert free[0] != free[1]
    # the generator is Gymnasium's own
    env.np_random = np.random.default_rng(3)
    one = env.reset()[1]["bar"]
    env.np_random = np.random.default_rng(3)
    assert env.reset()[1]["bar"] == one


def test_an_observation_keeps_nothing_of_earlier_episodes(crashing_path):
    place = {"symbol": "AAA", "bar": 300}
    env = make(crashing_path, env=RECKLESS, positions=(0.0, 1.0, 3.0))
    first, info = env.reset(options=place)
    for seed in range(3):
        env.reset(seed=seed)
        play(env, [2] * 40)
        again, info_again = env.reset(options=place)
        np.testing.assert_array_equal(first, again)
        assert info == info_again
    account = dict(zip(env.observation_names, first, strict=True))
    assert account["cash"] == 1
    assert not any(
        account[n] for n in ("weight:asset", "profit:asset", "age:asset", "target:asset", "reward")
    )


def test_observations_are_named_bounded_and_scaled_by_the_train_split(planted_path):
    for split in ("train", "validation"):
        env = HpcrlTradingEnv(planted_path, split=split, episode_steps=40)
        market = env._desk.opened.market
        lo, hi = market.split_range(split)
        scaled = fit_scaler(market, *market.split_range("train")).apply(market.feature_BSF)
        observation, info = env.reset(seed=2)
        assert len(env.observation_names) == len(observation) == len(env.observation_space.low)
        row, column = info["bar"], env.symbols.index(info["symbol"])
        assert lo <= row and row + 40 < hi
        assert observation[env.observation_names.index("signal:asset")] == scaled[row, column, 0]
        assert info["timestamp"] == env.timestamps[row]
    assert np.isfinite(env.observation_space.low).all() and np.isfinite(env.observation_space.high).all()
    together = make(planted_path, "all")
    assert together.observation_names[:3] == [f"signal:{symbol}" for symbol in together.symbols]


def test_rewards_and_infos_tell_the_account(planted_path):
    env = make(planted_path, env={"rewards": {"log_return": 1.0, "turnover": 0.5}})
    env.reset(seed=1)
    before, total = 100_000.0, 0.0
    for _, reward, _, _, info in play(env, [2, 2, 0, 0, 1] * 8):
        assert info["log_return"] == pytest.approx(math.log(info["equity"] / before), abs=1e-12)
        assert reward == pytest.approx(info["log_return"] - 0.5 * info["turnover"], rel=1e-5, abs=1e-9)
        assert info["equity_raw"] == info["equity"]
        total += info["log_return"]
        before = info["equity"]
    assert total == pytest.approx(math.log(before / 100_000), abs=1e-12)
    assert info["target"] == 0 and abs(info["position"]) < 1e-3


def test_an_episode_is_truncated_at_its_length_and_never_runs_on(planted_path):
    env = make(planted_path)
    _, info = env.reset(seed=1)
    found = play(env, [2] * 100)
    assert len(found) == 40 and found[-1][2:4] == (False, True)
    assert all(one[2:4] == (False, False) for one in found[:-1])
    assert found[-1][4]["bar"] == info["bar"] + 40
    with pytest.raises(
        HpcrlError, match=r"env 0, L2-000\d, bar \d+ \(.*Z\): no episode is going on; call reset"
    ):
        env.step(1)
    with pytest.raises(HpcrlError, match="call reset first"):
        make(planted_path).step(1)


def test_bankruptcy_terminates_with_the_ruined_accounts_own_observation(crashing_path):
    env = make(crashing_path, env=RECKLESS, positions=(0.0, 3.0))
    env.reset(seed=0, options={"symbol": "AAA", "bar": 300})
    found = play(env, [1] * 40)
    observation, reward, terminated, truncated, info = found[-1]
    assert terminated and not truncated and len(found) < 40
    assert reward == pytest.approx(math.log(1e-4), rel=1e-6)
    assert info["equity"] == 0 and info["equity_raw"] < 0 and info["position"] == 0 and info["target"] == 3
    assert all(one[4]["equity"] > 0 for one in found[:-1])
    assert observation in env.observation_space
    seen = dict(zip(env.observation_names, observation, strict=True))
    row = info["bar"]
    tensors = env._desk.opened.tensors
    assert seen["mood:asset"] == tensors.feature_BSF[row, 0, 0]
    assert (seen["weight:asset"], seen["target:asset"], seen["drawdown"], seen["reward"]) == (0, 3, 10, -5)
    with pytest.raises(HpcrlError, match="no episode is going on"):
        env.step(0)
    assert env.reset()[1]["equity"] == 100_000


def test_bankruptcy_in_the_last_step_terminates_and_does_not_truncate(crashing_path):
    place = {"symbol": "AAA", "bar": 300}
    env = make(crashing_path, env=RECKLESS, positions=(0.0, 3.0))
    env.reset(options=place)
    steps = len(play(env, [1] * 40))
    env = HpcrlTradingEnv(crashing_path, env=RECKLESS, positions=(0.0, 3.0), episode_steps=steps)
    env.reset(options=place)
    assert play(env, [1] * 40)[-1][2:4] == (True, False)


def test_an_episode_starts_where_options_say(planted_path):
    env = make(planted_path)
    _, info = env.reset(seed=1, options={"symbol": "L2-0002", "bar": 277})
    assert (info["symbol"], info["bar"]) == ("L2-0002", 277)
    rows = {env.reset(options={"symbol": "L2-0001"})[1]["bar"] for _ in range(10)}
    assert len(rows) > 5
    symbols = {env.reset(options={"bar": 300})[1]["symbol"] for _ in range(30)}
    assert symbols == set(env.symbols)
    _, hi = env.bars
    first = int(env._desk.opened.market.first_bar_S[0])
    for bar in (first, hi - 1 - 40):
        assert env.reset(options={"bar": bar})[1]["bar"] == bar
        assert len(play(env, [1] * 99)) == 40
    together = make(planted_path, "all")
    assert together.reset(options={"bar": first})[1]["bar"] == first


def test_a_start_that_does_not_fit_is_refused_and_the_episode_goes_on(planted_path):
    env = make(planted_path)
    env.reset(seed=1)
    _, hi = env.bars
    for options, words in (
        ({"symbol": "L2-00O1"}, r"symbol = 'L2-00O1' \(did you mean 'L2-0001'\?\): the market has L2-0000, "),
        (
            {"bar": hi - 40},
            rf"bar = {hi - 40}: an episode of 40 steps starts at a bar from \d+ to {hi - 41} ",
        ),
        ({"symbol": "L2-0000", "bar": -1}, r"bar = -1: an episode of 40 steps of L2-0000 starts"),
        ({"bar": 300.5}, r"bar = 300.5: a row of the market's time grid is needed"),
        ({"bar": True}, r"bar = True: a row"),
        (
            {"symbols": "L2-0000"},
            r"unknown reset option 'symbols'; there are symbol, bar; did you mean 'symbol'",
        ),
    ):
        with pytest.raises(HpcrlError, match=words):
            env.reset(options=options)
    with pytest.raises(HpcrlError, match=r"trades all of L2-0000, L2-0001, L2-0002"):
        make(planted_path, "all").reset(options={"symbol": "L2-0000"})
    env.step(1)


BAD = {
    ("single", "discrete"): [3, -1, 0.5, True, None, "1", [1], np.array([1]), np.float32(1), math.nan],
    ("all", "discrete"): [[0, 1], [0, 1, 3], [0, -1, 2], [0.0, 1.0, 2.0], 1, [[0, 1, 2]], [0, [1], 2], None],
    ("single", "continuous"): [[math.nan], [math.inf], [1.0001], [-2.0], 0.5, [0.5, 0.5], [1], [None], ["a"]],
    ("all", "continuous"): [
        [0.0, 0.0],
        [0.0, math.nan, 0.0],
        [0.0, 0.0, -math.inf],
        [0.0, 0.0, 1.5],
        [[0.0] * 3],
    ],
}


@pytest.mark.parametrize(("assets", "action"), KINDS)
def test_a_bad_action_is_refused_by_place_and_changes_nothing(planted_path, assets, action):
    env = make(planted_path, assets, action=action)
    clean = copy.deepcopy(env)
    env.action_space.seed(1)
    actions = [env.action_space.sample() for _ in range(40)]
    env.reset(seed=2)
    clean.reset(seed=2)
    before = play(env, actions[:5])
    for bad in BAD[assets, action]:
        with pytest.raises(HpcrlError, match=r"env 0, L2-000\d, bar \d+ \(2016-.*Z\): the action"):
            env.step(bad)
    assert_same(before + play(env, actions[5:]), play(clean, actions))


def test_the_refusal_of_an_action_names_the_asset(planted_path):
    env = make(planted_path, "all", action="continuous")
    _, info = env.reset(seed=2)
    with pytest.raises(HpcrlError) as caught:
        env.step(np.array([0.0, 0.0, np.nan], dtype=np.float32))
    words = rf"env 0, L2-0002, bar {info['bar']} \(.*Z\): the action is nan; a finite number from -1 to 1 .*"
    assert re.fullmatch(words, str(caught.value))


def test_actions_become_the_weights_that_they_stand_for(planted_path):
    env = make(planted_path, env={"max_leverage": 2.0}, positions=(-2.0, 0.25, 1.5))
    env.reset(seed=1)
    assert [env.step(np.int64(i))[4]["target"] for i in (0, 1, 2)] == [-2.0, 0.25, 1.5]
    low = make(planted_path, "all", action="continuous", weight_low=0.0, weight_high=0.3)
    low.reset(seed=1)
    info = low.step(np.array([-1.0, 0.0, 1.0], dtype=np.float32))[4]
    np.testing.assert_allclose(info["target"], [0.0, 0.15, 0.3], atol=1e-15)
    np.testing.assert_allclose(info["position"], [0.0, 0.15, 0.3], atol=2e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": None}, r"path is missing; give the file of `hpcrl stage`"),
        ({"path": "nowhere.h5"}, r"nowhere.h5: no such file"),
        ({"split": "tain"}, r"split = 'tain': must be 'train', 'validation' or 'test'"),
        ({"episode_steps": 0}, r"episode_steps = 0"),
        (
            {"episode_steps": 4000},
            r"the train split has \d+ tradable bars .* episode of 4000 steps needs 4001",
        ),
        ({"episode_step": 5}, r"unknown key episode_step = 5; nearest valid key: episode_steps"),
        ({"env": {"cost": {}}}, r"unknown key env.cost = {}; nearest valid key: env.costs"),
        ({"env": {"lot": -1}}, r"env.lot = -1"),
        ({"market": {"symbols": ["L2-9"]}}, r"no symbol 'L2-9'"),
        ({"market": {"path": "other.h5"}}, r"market.path = other.h5; give one of them"),
        ({"action": "multi"}, r"action = 'multi'"),
        ({"positions": (1.0, 0.0)}, r"at least two different weights are needed, ascending"),
        ({"positions": (0.0, 1.5)}, r"a weight of 1.5 is beyond env.max_leverage = 1"),
        ({"action": "continuous", "weight_high": 2.0}, r"a weight of 2 is beyond env.max_leverage = 1"),
        ({"weight_low": 1.0}, r"weight_low = 1 must lie below weight_high = 1"),
        ({"render_mode": "human"}, r"render_mode = 'human'"),
    ],
)
def test_a_mistake_in_the_settings_is_refused_by_name(planted_path, settings, words):
    with pytest.raises(HpcrlError, match=words):
        HpcrlTradingEnv(**{"path": planted_path, **settings})


def test_a_whole_env_config_is_taken_too(planted_path):
    env = HpcrlTradingEnv(planted_path, env=EnvConfig(costs=FREE, lot=0), episode_steps=40)
    env.reset(seed=1)
    assert sum(one[4]["fees"] + one[4]["spread"] for one in play(env, [0, 2] * 20)) == 0


def test_the_sealed_split_and_fills_in_hindsight_are_said_aloud(planted_path):
    with pytest.warns(UserWarning, match="test split is sealed"):
        HpcrlTradingEnv(planted_path, split="test", episode_steps=40)
    with pytest.warns(UserWarning, match="fill_lag = 0"):
        make(planted_path, env={"fill_lag": 0})


@pytest.mark.parametrize("assets", ["single", "all"])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_by_itself_bit_for_bit(crashing_path, assets, how):
    env = make(crashing_path, assets, env=RECKLESS, render_mode="rgb_array")
    env.reset(seed=3)
    play(env, [env.action_space.sample() for _ in range(10)])
    copied = how(env)
    assert len(pickle.dumps(env)) < 50_000
    np.testing.assert_array_equal(env.render(), copied.render())
    actions = [env.action_space.sample() for _ in range(40)]
    first = play(env, actions)
    assert_same(first, play(copied, actions))
    assert env.reset()[1]["bar"] == copied.reset()[1]["bar"]


def test_a_copy_of_a_file_that_was_staged_anew_is_refused(tmp_path):
    from gym_markets import planted_file

    env = make(planted_file(tmp_path))
    env.reset(seed=1)
    saved = pickle.dumps(env)
    planted_file(tmp_path, bars=450)
    with pytest.raises(HpcrlError, match="other bars than when this environment was saved"):
        pickle.loads(saved)


def test_environments_of_one_process_share_the_market(planted_path):
    one, two = make(planted_path), make(planted_path, "all")
    assert one._desk.opened is two._desk.opened
