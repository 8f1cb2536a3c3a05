"""Stable-Baselines3's agents train on the environments as they are."""

import re
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gym_markets import FREE, RECKLESS, planted_file
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import hpcrl
from hpcrl.env.gymnasium import HpcrlVectorEnv
from hpcrl.env.sb3 import HpcrlSb3VecEnv
from hpcrl.types import HpcrlError

SPREAD = {"costs": {**FREE, "half_spread": 1e-4}, "lot": 0}


def mean_reward(path, choose):
    """Per bar of the validation split, over 64 episodes of 100 bars; ``choose``: observations -> actions."""
    env = HpcrlVectorEnv(path, num_envs=64, split="validation", episode_steps=100, env=SPREAD)
    observation, _ = env.reset(seed=7)
    total = 0.0
    for _ in range(100):
        observation, reward, *_ = env.step(choose(observation))
        total += reward.mean()
    return total / 100


@pytest.mark.slow
def test_ppo_learns_a_planted_market(tmp_path):
    """L2, where the best policy earns 1.47e-4 a bar and acting at random loses 1e-4."""
    path = planted_file(tmp_path, bars=1000, paths=64)
    env = HpcrlVectorEnv(path, num_envs=128, episode_steps=128, env=SPREAD)
    agent = PPO(
        "MlpPolicy",
        VecNormalize(HpcrlSb3VecEnv(env), norm_obs=False),
        n_steps=64,
        batch_size=1024,
        n_epochs=4,
        gamma=0.5,
        gae_lambda=0.5,
        learning_rate=3e-3,
        seed=1,
        device="cpu",
        policy_kwargs={"net_arch": []},
    )
    agent.learn(5 * 64 * 128)
    rng = np.random.default_rng(0)
    at_random = mean_reward(path, lambda observation: rng.integers(0, 3, len(observation)))
    learnt = mean_reward(path, lambda observation: agent.predict(observation, deterministic=True)[0])
    assert at_random < -5e-5 and learnt > 3e-5, (at_random, learnt)


@pytest.mark.parametrize(
    ("kind", "assets", "action"),
    [
        (PPO, "single", "discrete"),
        (PPO, "single", "continuous"),
        (PPO, "all", "discrete"),
        (SAC, "all", "continuous"),
    ],
)
def test_agents_run_on_the_single_environment_unmodified(planted_path, kind, assets, action):
    env = gymnasium.make(
        hpcrl.ENV_ID, path=planted_path, env={"assets": assets}, action=action, episode_steps=40
    )
    small = {"n_steps": 64} if kind is PPO else {"learning_starts": 50, "buffer_size": 200}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = kind(
            "MlpPolicy", env, seed=1, device="cpu", batch_size=32, policy_kwargs={"net_arch": [16]}, **small
        )
        agent.learn(70)
    observation, _ = env.reset(seed=1)
    env.step(agent.predict(observation)[0])
    assert agent.num_timesteps >= 70


def test_the_batch_is_what_sb3_makes_of_single_ones(crashing_path):
    """Observations, rewards, dones and terminal observations equal DummyVecEnv's, bankruptcies included."""
    chosen = {"path": crashing_path, "env": RECKLESS, "positions": (-3.0, 0.0, 3.0), "episode_steps": 30}
    single = make_vec_env(hpcrl.ENV_ID, n_envs=4, env_kwargs=chosen)
    batch = HpcrlSb3VecEnv(HpcrlVectorEnv(num_envs=4, **chosen))
    kinds = set()
    for env in (single, batch):
        env.seed(5)
    np.testing.assert_array_equal(single.reset(), batch.reset())
    rng = np.random.default_rng(1)
    for _ in range(80):
        actions = rng.integers(0, 3, 4)
        one, two = single.step(actions), batch.step(actions)
        for a, b in zip(one[:3], two[:3], strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        for n in np.flatnonzero(one[2]):
            mine, theirs = two[3][n], one[3][n]
            np.testing.assert_array_equal(mine["terminal_observation"], theirs["terminal_observation"])
            assert mine["TimeLimit.truncated"] == theirs["TimeLimit.truncated"]
            assert mine["equity"] == theirs["equity"]
            kinds.add(mine["TimeLimit.truncated"])
    assert kinds == {True, False}


def test_options_and_attributes_of_the_batch(planted_path):
    env = HpcrlSb3VecEnv(HpcrlVectorEnv(planted_path, num_envs=3, episode_steps=20, render_mode="rgb_array"))
    env.set_options({"symbol": "L2-0001", "bar": 300})
    rows = env.reset()
    assert (rows == rows[0]).all()
    assert not (env.reset() == rows).all()  # options count once
    assert env.get_attr("symbols", 1) == [env.env.symbols]
    assert env.env_is_wrapped(gymnasium.Wrapper) == [False] * 3
    assert env.render().ndim == 3
    with pytest.raises(HpcrlError, match="env 1, "):
        env.step(np.array([0, 7, 0]))
    for call in (lambda: env.set_attr("symbols", 1), lambda: env.env_method("step")):
        with pytest.raises(AttributeError, match="of a batch"):
            call()
    env.close()


def test_the_documented_example_runs(planted_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "gymnasium.md").read_text()
    (code,) = re.findall(r"<!-- gymnasium -->\n```python\n(.*?)```", page, re.S)
    assert code.count("data/market.h5") == 2
    names: dict = {}
    exec(code.replace("data/market.h5", str(planted_path)), names)
    assert names["picture"].shape == (600, 800, 3) and names["truncated"].shape == (256,)
