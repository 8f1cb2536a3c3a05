"""The frames of ``render``: what they show, and that they show nothing of the future or of others."""

import warnings

import matplotlib
import numpy as np
import pytest
from gym_markets import RECKLESS
from matplotlib import pyplot

from hpcrl.env.chart import Chart
from hpcrl.env.gymnasium import HpcrlTradingEnv, HpcrlVectorEnv

UPPER, MIDDLE, LOWER = slice(80, 285), slice(300, 395), slice(415, 540)
"""Rows of the three axes."""


def make(path, **more):
    return HpcrlTradingEnv(path, render_mode="rgb_array", episode_steps=40, **more)


def test_a_frame_is_a_picture_of_the_episode_so_far(planted_path):
    env = make(planted_path)
    env.reset(seed=1)
    first = env.render()
    assert first.shape == (600, 800, 3) and first.dtype == np.uint8
    for _ in range(20):
        env.step(2)
    middle = env.render()
    right_half = (slice(None), slice(500, 770))  # steps 24 to 39, which have not been
    for rows in (UPPER, MIDDLE, LOWER):
        ink = (middle[rows][right_half] < 180).any(-1).sum()
        assert ink < 0.02 * middle[rows][right_half][..., 0].size
        assert (first[rows] != middle[rows]).any()
    np.testing.assert_array_equal(middle, env.render())
    for _ in range(20):
        env.step(0)
    assert (env.render()[UPPER][right_half] != middle[UPPER][right_half]).any()


def test_prices_end_at_the_bar_that_has_just_closed(planted_path, monkeypatch):
    frames = []
    monkeypatch.setattr(Chart, "draw", lambda self, frame: frames.append(frame))
    env = make(planted_path)
    _, info = env.reset(seed=1)
    start = info["bar"]
    for step in range(6):
        env.render()
        market = env._desk.opened.market
        closes = market.close_BS[start : info["bar"] + 1, market.symbols.index(info["symbol"])]
        np.testing.assert_array_equal(frames[-1].close_KA[:, 0], closes)
        assert (frames[-1].bar, frames[-1].timestamp) == (info["bar"], info["timestamp"])
        assert len(frames[-1].equity_K) == step + 1 and frames[-1].equity_K[-1] == info["equity"]
        info = env.step(2)[4]


def test_long_and_short_differ_and_flat_is_empty(planted_path):
    panels = []
    for action in (0, 1, 2):
        env = make(planted_path)
        env.reset(seed=1)
        for _ in range(30):
            env.step(action)
        panels.append(env.render()[MIDDLE].astype(int))
    blue = [int((panel[..., 2] - panel[..., 0] > 60).sum()) for panel in panels]
    orange = [int((panel[..., 0] - panel[..., 2] > 60).sum()) for panel in panels]
    assert blue[2] > 5000 > blue[1] == blue[0] == 0
    assert orange[0] > 5000 > orange[1] == orange[2] == 0


def test_a_new_episode_shows_nothing_of_the_last(crashing_path):
    place = {"symbol": "AAA", "bar": 300}
    env = make(crashing_path, env=RECKLESS, positions=(0.0, 3.0))
    env.reset(options=place)
    fresh = env.render()
    terminated = False
    while not terminated:
        terminated = env.step(1)[2]
    ruined = env.render()
    assert (ruined != fresh).any()
    assert (ruined[20:50, :, 0].astype(int) - ruined[20:50, :, 1] > 100).any()  # "bankrupt" in red
    env.reset(options=place)
    np.testing.assert_array_equal(env.render(), fresh)


@pytest.mark.parametrize("action", ["discrete", "continuous"])
def test_frames_of_a_batch_are_those_of_single_ones(planted_path, action):
    together = {"env": {"assets": "all"}, "action": action}
    for chosen in ({"action": action}, together):
        batch = HpcrlVectorEnv(planted_path, num_envs=2, episode_steps=40, render_mode="rgb_array", **chosen)
        single = make(planted_path, **chosen)
        batch.reset(seed=1)
        single.reset(seed=2)
        for _ in range(7):
            actions = batch.action_space.sample()
            batch.step(actions)
            single.step(actions[1])
        frames = batch.render()
        assert len(frames) == 2
        np.testing.assert_array_equal(frames[1], single.render())


def test_drawing_leaves_matplotlib_as_it_is(planted_path):
    before = dict(matplotlib.rcParams)
    env = make(planted_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.reset(seed=1)
        env.render()
    assert pyplot.get_fignums() == [] and dict(matplotlib.rcParams) == before
    env.close()
    env.close()
    assert env.render().shape == (600, 800, 3)


def test_without_a_render_mode_nothing_is_drawn(planted_path):
    env = HpcrlTradingEnv(planted_path, episode_steps=40)
    env.reset(seed=1)
    assert env.render() is None
    assert HpcrlVectorEnv(planted_path, num_envs=2, episode_steps=40).render() is None
