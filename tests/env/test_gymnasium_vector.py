"""The native vector environment against Gymnasium's own vector of single ones, bit for bit."""

import copy
import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from gym_markets import RECKLESS
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import hpcrl
from hpcrl.env.gymnasium import HpcrlTradingEnv, HpcrlVectorEnv
from hpcrl.types import HpcrlError

KINDS = [(assets, action) for assets in ("single", "all") for action in ("discrete", "continuous")]
STATEFUL = {"differential_sharpe": 0.1, "differential_downside": 0.1, "potential": 1.0}
SAME_STEP = {"autoreset_mode": AutoresetMode.SAME_STEP}


def settings(path, assets="single", action="discrete", **more):
    env = {"assets": assets, **RECKLESS}
    bold = {"positions": (-3.0, 0.0, 3.0), "weight_low": -3.0, "weight_high": 3.0}
    return {"path": path, "env": env, "action": action, "episode_steps": 30, **bold, **more}


def assert_same_tree(one, two, path=""):
    assert type(one) is type(two), path
    if isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for name in one:
            assert_same_tree(one[name], two[name], f"{path}.{name}")
    elif isinstance(one, tuple):
        assert len(one) == len(two)
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same_tree(a, b, f"{path}[{i}]")
    elif isinstance(one, np.ndarray) and one.dtype == object:
        assert one.shape == two.shape
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=path)
    else:
        assert one.dtype == two.dtype, path
        np.testing.assert_array_equal(one, two, err_msg=path)


@pytest.mark.parametrize("more", [{}, {"fill_lag": 2, "rewards": STATEFUL}], ids=["plain", "late"])
@pytest.mark.parametrize(("assets", "action"), KINDS)
def test_it_is_gymnasiums_vector_of_single_ones_bit_for_bit(crashing_path, assets, action, more):
    """Observations, rewards, ends, infos, final observations and infos, over truncations and bankruptcies."""
    chosen = settings(crashing_path, assets, action)
    chosen["env"] |= more
    native = HpcrlVectorEnv(num_envs=5, **chosen)
    sync = SyncVectorEnv([lambda: HpcrlTradingEnv(**chosen)] * 5, **SAME_STEP)
    assert native.observation_space == sync.observation_space and native.action_space == sync.action_space
    native.action_space.seed(1)
    ends = np.zeros(2, dtype=int)
    for seed in (11, [5, None, 7, 8, 9]):
        assert_same_tree(native.reset(seed=seed), sync.reset(seed=seed))
        for _ in range(90):
            actions = native.action_space.sample()
            one = native.step(actions)
            assert one[0] in native.observation_space
            assert_same_tree(one, sync.step(actions))
            ends += one[2].sum(), one[3].sum()
    assert (ends > 2).all(), ends
    assert native.np_random_seed == sync.np_random_seed


def test_infos_of_the_new_episode_hold_nothing_of_the_old(crashing_path):
    env = HpcrlVectorEnv(num_envs=8, **settings(crashing_path))
    env.reset(seed=0)
    seen = 0
    for _ in range(60):
        observation, _, terminated, truncated, infos = env.step(np.full(8, 2))
        ended = terminated | truncated
        seen += terminated.sum()
        assert (infos["equity"][ended] == 100_000).all() and (infos["equity"][~ended] > 0).all()
        for name in ("position", "target", "fees", "log_return", "financing"):
            assert not infos[name][ended].any()
        if not ended.any():
            assert "final_obs" not in infos
            continue
        np.testing.assert_array_equal(infos["_final_obs"], ended)
        assert (infos["final_info"]["equity"][terminated] == 0).all()
        assert (infos["final_info"]["equity_raw"][terminated] < 0).all()
        for n in np.flatnonzero(ended):
            assert infos["final_obs"][n] in env.single_observation_space
            assert not np.array_equal(infos["final_obs"][n], observation[n])
    assert seen > 5


def test_one_environments_actions_change_no_other(crashing_path):
    runs = []
    for action in (0, 2):
        env = HpcrlVectorEnv(num_envs=4, **settings(crashing_path))
        env.reset(seed=3)
        actions = np.array([1, 2, action, 0])
        runs.append([env.step(actions) for _ in range(50)])
    others = [0, 1, 3]
    for one, two in zip(*runs, strict=True):
        for k in range(4):
            np.testing.assert_array_equal(one[k][others], two[k][others])
    assert not np.array_equal(runs[0][5][0][2], runs[1][5][0][2])


def test_what_is_returned_is_nobodys_buffer(planted_path):
    env = HpcrlVectorEnv(planted_path, num_envs=3, episode_steps=4)
    kept = [env.reset(seed=1)[0]]
    for _ in range(6):
        kept += env.step(np.full(3, 2))[:4]
    copies = copy.deepcopy(kept)
    for _ in range(6):
        env.step(np.full(3, 0))
    for one, two in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(one, two)


def test_registered_and_declared(planted_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make_vec(hpcrl.ENV_ID, num_envs=4, path=planted_path, episode_steps=20)
    assert isinstance(env, HpcrlVectorEnv) and env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert HpcrlTradingEnv.metadata.get("autoreset_mode") is None
    assert repr(env) == "HpcrlVectorEnv(hpcrl/Trading-v0, num_envs=4)"
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(env)
    wrapped.reset(seed=0)
    for _ in range(20):
        infos = wrapped.step(wrapped.action_space.sample())[4]
    assert (infos["episode"]["l"] == 20).all()
    env.close()
    env.close()


def test_options_choose_the_start_of_all_or_of_each(planted_path):
    env = HpcrlVectorEnv(planted_path, num_envs=3, episode_steps=20)
    infos = env.reset(seed=0, options={"symbol": "L2-0001"})[1]
    assert infos["symbol"].tolist() == ["L2-0001"] * 3 and len(set(infos["bar"])) > 1
    names = ["L2-0002", "L2-0000", None]
    infos = env.reset(options={"symbol": names, "bar": np.array([300, 310, 320])})[1]
    assert infos["symbol"][:2].tolist() == names[:2] and infos["bar"].tolist() == [300, 310, 320]
    with pytest.raises(HpcrlError, match="reset option bar has 2 values for 3 environments"):
        env.reset(options={"bar": [300, 310]})


def test_a_refused_reset_changes_no_generator(planted_path):
    single, batch = HpcrlTradingEnv(planted_path), HpcrlVectorEnv(planted_path, num_envs=3)
    for env, bar in ((single, 1), (batch, [300, 301, 1])):
        env.reset(seed=7)
        expected = [env.reset()[1]["bar"] for _ in range(3)]
        env.reset(seed=7)
        for seed in (None, 5):
            with pytest.raises(HpcrlError, match="reset option bar = 1: an episode"):
                env.reset(seed=seed, options={"bar": bar})
        np.testing.assert_array_equal([env.reset()[1]["bar"] for _ in range(3)], expected)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"seed": 1.5}, "seed = 1.5: a whole number is needed, or one for each"),
        ({"seed": [1, 2]}, "2 seeds for 3 environments"),
        ({"options": "AAA"}, "options = 'AAA' must be a dictionary of symbol, bar, reset_mask"),
        ({"options": {"bar": np.array(300.5)}}, "a row of the market's time grid is needed"),
    ],
)
def test_what_is_no_seed_and_no_option_is_refused(planted_path, given, words):
    with pytest.raises(HpcrlError, match=words):
        HpcrlVectorEnv(planted_path, num_envs=3).reset(**given)


def test_a_mask_resets_some_and_lets_the_others_go_on(planted_path):
    chosen = {"path": planted_path, "episode_steps": 20}
    native = HpcrlVectorEnv(num_envs=3, **chosen)
    sync = SyncVectorEnv([lambda: HpcrlTradingEnv(**chosen)] * 3, **SAME_STEP)
    for mask in (None, [True, False, False], [False, True, True]):
        options = [{} if mask is None else {"reset_mask": np.array(mask)} for _ in range(2)]
        one, two = native.reset(seed=4, options=options[0]), sync.reset(seed=4, options=options[1])
        np.testing.assert_array_equal(one[0], two[0])
        for _ in range(30):
            actions = native.action_space.sample()
            assert_same_tree(native.step(actions), sync.step(actions))
    for mask in ([1, 0, 0], np.zeros(3, dtype=bool), np.ones(2, dtype=bool)):
        with pytest.raises(HpcrlError, match=r"reset_mask is .*bool of shape \(3,\) with at least one True"):
            native.reset(options={"reset_mask": mask})
    with pytest.raises(HpcrlError, match="first reset must start every environment"):
        HpcrlVectorEnv(num_envs=3, **chosen).reset(options={"reset_mask": np.array([True, False, True])})


@pytest.mark.parametrize(
    ("action", "bad", "words"),
    [
        (
            "discrete",
            [0, 1, 3],
            r"env 2, L2-000\d, bar \d+ \(.*\): the action is 3; a whole number from 0 to 2",
        ),
        ("discrete", [0, 1], r"env 0, .*actions of 3 environments have shape \(2,\); \(3,\) is needed"),
        ("discrete", [[0], [1], [2]], r"have shape \(3, 1\); \(3,\) is needed"),
        ("discrete", [0.0, 1.0, 2.0], r"dtype float64; a whole number"),
        ("discrete", [[0], [1, 2], [0]], r"env 0, .* is no array"),
        ("continuous", [[0.0], [np.nan], [np.inf]], r"env 1, L2-000\d, bar \d+ \(.*\): the action is nan"),
        (
            "continuous",
            [[0.0], [0.5], [-1.001]],
            r"env 2, .*the action is -1.001; a finite number from -1 to 1",
        ),
        ("continuous", [0.0, 0.0, 0.0], r"have shape \(3,\); \(3, 1\) is needed, \(1,\) for each"),
    ],
)
def test_one_bad_action_stops_all_before_anything_moves(planted_path, action, bad, words):
    env = HpcrlVectorEnv(planted_path, num_envs=3, episode_steps=20, action=action)
    clean = copy.deepcopy(env)
    good = [clean.action_space.sample() for _ in range(30)]
    first = env.reset(seed=9), clean.reset(seed=9)
    assert_same_tree(*first)
    for actions in good:
        with pytest.raises(HpcrlError, match=words):
            env.step(bad)
        assert_same_tree(env.step(actions), clean.step(actions))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_by_itself_bit_for_bit(crashing_path, how):
    env = HpcrlVectorEnv(num_envs=4, **settings(crashing_path))
    env.reset(seed=1)
    for _ in range(13):
        env.step(env.action_space.sample())
    copied = how(env)
    for _ in range(40):
        actions = env.action_space.sample()
        assert_same_tree(env.step(actions), copied.step(actions))


@pytest.mark.parametrize("num_envs", [0, -1, 2.0, True, "3"])
def test_a_wrong_number_of_environments_is_refused(planted_path, num_envs):
    with pytest.raises(HpcrlError, match=r"num_envs = .*: a whole number above 0 is needed"):
        HpcrlVectorEnv(planted_path, num_envs=num_envs)


def test_a_step_before_any_reset_is_refused(planted_path):
    with pytest.raises(HpcrlError, match="call reset first"):
        HpcrlVectorEnv(planted_path, num_envs=2).step(np.ones(2, dtype=int))


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_single_ones_work_in_processes_of_their_own(crashing_path, context):
    chosen = settings(crashing_path)
    sync = SyncVectorEnv([lambda: HpcrlTradingEnv(**chosen)] * 2, **SAME_STEP)
    apart = gymnasium.make_vec(
        hpcrl.ENV_ID,
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": context, **SAME_STEP},
        **chosen,
    )
    assert isinstance(apart, AsyncVectorEnv)
    try:
        np.testing.assert_array_equal(apart.reset(seed=2)[0], sync.reset(seed=2)[0])
        for _ in range(40):
            actions = sync.action_space.sample()
            assert_same_tree(apart.step(actions)[:4], sync.step(actions)[:4])
    finally:
        apart.close(terminate=True)
