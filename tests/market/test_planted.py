import json

import numpy as np
import pytest
import torch

from hpcrl.config.load import load_config
from hpcrl.config.market import MarketConfig
from hpcrl.env.simulator import Simulator
from hpcrl.market.features import BURN_IN
from hpcrl.market.load import load_market
from hpcrl.market.oracle import log_odds, mean_and_error, oracle, rewards, solve
from hpcrl.market.planted import TASKS, draw_paths, planted
from hpcrl.market.scaler import fit_scaler
from hpcrl.market.stage import stage_planted
from hpcrl.types import HpcrlError

PATHS, BARS = 2000, BURN_IN + 2000
"""4 million counted bars: standard errors of 2.5e-7 to 7e-7 a bar."""
PAID = [name for name, task in TASKS.items() if task.oracle_reward > 0]


def play(name, positions, seed=1, paths=PATHS, bars=BARS):
    """(mean reward, standard error) of ``positions(feature_PB)`` on fresh paths."""
    feature_PB, return_PB = draw_paths(name, bars, paths, seed)
    return mean_and_error(rewards(positions(feature_PB), return_PB, TASKS[name].half_spread))


@pytest.mark.parametrize("name", PAID)
def test_the_oracle_earns_what_the_page_states(name):
    stated, best = TASKS[name].oracle_reward, oracle(name)
    assert best.mean_reward == pytest.approx(stated, rel=2e-4)
    mean, error = play(name, best.play)
    print(f"{name}: stated {stated:.4e}, programme {best.mean_reward:.4e}, played {mean:.4e} +- {error:.1e}")
    assert error < 0.006 * stated
    assert abs(mean - stated) < 2 * error


@pytest.mark.parametrize("name", ["L0", "control"])
def test_where_nothing_can_be_known_the_oracle_stays_flat_and_a_trader_loses_the_cost(name):
    feature_PB, return_PB = draw_paths(name, BURN_IN + 250, 4000, seed=3)
    assert oracle(name).mean_reward == 0 and not oracle(name).play(feature_PB).any()
    sign_PB = np.sign(feature_PB)
    free, error = mean_and_error(rewards(sign_PB, return_PB, 0.0))
    assert abs(free) < 3 * error
    paid, error = mean_and_error(rewards(sign_PB, return_PB, TASKS[name].half_spread))
    assert paid < -3 * error


@pytest.mark.parametrize("name", TASKS)
def test_buy_and_hold_earns_nothing_and_random_positions_the_cost_of_turnover(name):
    def at_random(feature_PB):
        return np.random.default_rng(5).integers(-1, 2, feature_PB.shape).astype(float)

    mean, error = play(name, np.ones_like, seed=2, paths=400, bars=1250)
    assert abs(mean) < 3 * error
    mean, error = play(name, at_random, seed=2, paths=400, bars=1250)
    assert abs(mean + 8 / 9 * TASKS[name].half_spread) < 3 * error


def test_the_sign_rule_gets_the_stated_share_of_l2():
    mean, error = play("L2", np.sign)
    assert abs(mean / TASKS["L2"].oracle_reward - 0.947) < 3 * error / TASKS["L2"].oracle_reward


def test_a_cue_pays_after_exactly_its_delay():
    process = TASKS["L5"].process
    cue_PB, return_PB = draw_paths("L5", 15_000, 4, seed=2)
    assert set(np.unique(cue_PB)) == {-1.0, 1.0} and abs(cue_PB.mean()) < 0.03
    for lag in (0, 1, process.delay - 1, process.delay, process.delay + 1):
        paid = (cue_PB[:, : 15_000 - lag - 1] * return_PB[:, lag + 1 :]).mean()
        due = process.size if lag == process.delay else 0.0
        assert abs(paid - due) < 5 * 7.1e-4 / np.sqrt(cue_PB.size)


def banded(state_PB, width, flat_inside=False):
    """Sign of the state outside +-width; inside, the position held before, or flat."""
    wish_PB = np.sign(state_PB) * (np.abs(state_PB) > width)
    for bar in range(1, 0 if flat_inside else wish_PB.shape[1]):
        wish_PB[:, bar] = np.where(wish_PB[:, bar], wish_PB[:, bar], wish_PB[:, bar - 1])
    return wish_PB


@pytest.mark.parametrize("name", ["L2", "L3", "L4", "L4b"])
def test_the_oracle_holds_inside_a_band_and_beats_other_bands_on_the_same_bars(name):
    feature_PB, return_PB = draw_paths(name, BURN_IN + 1000, 1000, seed=4)
    best, cost = oracle(name), TASKS[name].half_spread
    direction = -1 if name == "L3" else 1
    state_PB, own_PB = direction * best.remember(feature_PB), best.play(feature_PB)
    up_G = (direction * best.grid_G)[best.action_G3[:, 1] > 0]
    band = up_G.min() - (best.grid_G[1] - best.grid_G[0]) / 2  # from flat: where buying begins to pay
    assert (banded(state_PB, band) == own_PB)[:, BURN_IN:].mean() > 0.99
    rivals = [banded(state_PB, share * band) for share in (0.0, 0.3, 2.5)]
    for rival_PB in (*rivals, banded(state_PB, band, flat_inside=True)):
        edge = rewards(own_PB, return_PB, cost) - rewards(rival_PB, return_PB, cost)
        mean, error = mean_and_error(edge)
        assert mean > 2 * error


def test_tables_are_symmetric_monotone_and_lazier_where_trading_costs_more():
    for name in ("L2", "L3", "L4", "L4b"):
        action_G3 = oracle(name).action_G3
        middle = len(action_G3) // 2
        mirrored_G3 = -action_G3[::-1, ::-1]
        assert (np.delete(action_G3, middle, axis=0) == np.delete(mirrored_G3, middle, axis=0)).all()
        steps = np.diff(action_G3, axis=0) * (-1 if name == "L3" else 1)
        assert (steps >= 0).all() and (np.diff(action_G3, axis=1) >= 0).all()
    move = np.array([[0.9, 0.1], [0.1, 0.9]])
    expected = np.array([-1.0, 1.0])
    action, mean = solve(expected, move, 0.5)  # follow: turn over 2 in a tenth of the bars
    assert mean == pytest.approx(1 - 0.1 * 2 * 0.5) and (action == expected[:, None]).all()
    action, mean = solve(expected, move, 11.0)  # a stretch of ten bars cannot pay for its trades
    assert mean == pytest.approx(0.0, abs=1e-12) and (action[:, 1] == 0).all()


def test_the_filter_is_bayes_rule_over_all_hidden_paths():
    process = TASKS["L4"].process
    feature_PB, _ = draw_paths("L4", 7, 3, seed=0)
    paths = np.array(np.meshgrid(*[[-1, 1]] * 7)).reshape(7, -1).T  # every path of signs [128, 7]
    turns = (np.diff(paths, axis=1) != 0).sum(axis=1)
    prior = process.flip**turns * (1 - process.flip) ** (6 - turns)
    for row, feature_B in enumerate(feature_PB):
        weight = prior * np.exp(-0.5 * ((feature_B - process.drift * paths) / process.sigma) ** 2).prod(1)
        up = weight[paths[:, -1] == 1].sum() / weight.sum()
        assert log_odds(process, feature_PB)[row, -1] == pytest.approx(np.log(up / (1 - up)), rel=1e-9)


@pytest.mark.parametrize("name", TASKS)
def test_an_oracle_never_reads_ahead(name):
    feature_PB, _ = draw_paths(name, 60, 4, seed=6)
    changed_PB = feature_PB.copy()
    changed_PB[:, 40:] *= -3
    best = oracle(name)
    assert (best.play(feature_PB)[:, :40] == best.play(changed_PB)[:, :40]).all()


def test_a_path_does_not_depend_on_how_many_others_are_made():
    for name in TASKS:
        one, many = draw_paths(name, 50, 1, seed=7), draw_paths(name, 50, 3, seed=7)
        assert all((first[0] == second[0]).all() for first, second in zip(one, many, strict=True))
        assert not (many[1][0] == many[1][1]).any()
        assert not (one[1] == draw_paths(name, 50, 1, seed=8)[1]).any()


@pytest.mark.parametrize("name", TASKS)
def test_a_task_stages_with_its_one_feature_and_the_oracle_plays_the_staged_bars(tmp_path, name):
    staged = stage_planted(tmp_path / "planted.h5", name, bars=200, paths=3, seed=9)
    market = load_market(MarketConfig(path=str(staged.path)))
    assert market.source == f"planted:{name}" and market.feature_names == (TASKS[name].feature,)
    assert market.symbols == tuple(f"{name}-{path:04d}" for path in range(3))
    assert market.present_BS.all() and market.first_bar_S.tolist() == [BURN_IN] * 3
    assert (market.open_BS[1:] == market.close_BS[:-1]).all()
    assert market.attributes["query"]["half_spread"] == TASKS[name].half_spread
    feature_PB, return_PB = draw_paths(name, BURN_IN + 200, 3, seed=9)
    np.testing.assert_allclose(np.diff(np.log(market.close_BS.T)), return_PB[:, 1:], atol=1e-12)
    own = oracle(name).play(market.feature_BSF[:, :, 0].T)
    assert (own == oracle(name).play(feature_PB)).mean() > 0.999  # features are kept in float32


def test_the_simulator_pays_what_the_reward_says(tmp_path):
    frame_out = stage_planted(tmp_path / "l2.h5", "L2", bars=400, paths=16, seed=10)
    market = load_market(MarketConfig(path=str(frame_out.path)))
    costs = "impact_coef=0 participation=null per_share=0 min_fee=0 borrow_rate=0 half_spread=1e-4"
    sets = ["env.lot=0", *(f"env.costs.{item}" for item in costs.split())]
    config = load_config(None, sets, environment={})
    simulator = Simulator(
        market.to("cpu", fit_scaler(market, *market.split_range("train"))),
        config.env,
        env_ids_N=torch.arange(16),
        seed=0,
        bars=(0, market.n_bars),
        history=0,
    )
    simulator.begin_at(torch.arange(16)[:, None], torch.full((16,), BURN_IN))
    feature_PB, return_PB = market.feature_BSF[:, :, 0].T, np.diff(np.log(market.close_BS.T), prepend=0.0)
    position_PB = oracle("L2").play(feature_PB[:, BURN_IN:])
    due_PB = rewards(position_PB, return_PB[:, BURN_IN:], 1e-4)
    for bar in range(300):
        step = simulator.step(torch.from_numpy(position_PB[:, bar : bar + 1].copy()))
        # Second order: ln(1 + x), a short position's drift and the fills' effect on equity.
        slack_P = 3 * (np.abs(return_PB[:, BURN_IN + bar + 1]) + 1e-3) ** 2
        assert (np.abs(step.log_return_N.numpy() - due_PB[:, bar]) < slack_P).all(), bar


def test_the_command_stages_a_planted_market(tmp_path, monkeypatch, capsys):
    from hpcrl.cli import app

    out = tmp_path / "l3.h5"
    words = "stage planted --task L3 --bars 40 --paths 2 --seed 3 --json --out"
    app([*words.split(), str(out)], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(out) and told["report"]["source"] == "planted:L3"


def test_impossible_requests_are_refused(tmp_path):
    with pytest.raises(HpcrlError, match=r"task 'L9' is not known; the planted markets are L0, .*control"):
        stage_planted(tmp_path / "x.h5", "L9")
    with pytest.raises(HpcrlError, match="bars is 0"):
        stage_planted(tmp_path / "x.h5", "L0", bars=0)
    with pytest.raises(HpcrlError, match="paths is 0"):
        planted("L0", 10, 0, 0)
    with pytest.raises(HpcrlError, match="seed is -1"):
        planted("L0", 10, 1, -1)
    assert not list(tmp_path.iterdir())
