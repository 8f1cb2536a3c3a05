"""A simulator whose caller decides who starts anew: ``renew=False`` and ``begin_some``."""

import pytest
import torch
from small_markets import all_costs, build_market, crash, reckless

from hpcrl.env.simulator import Simulator, Step
from hpcrl.types import HpcrlError


def build(market, config, n, renew=False):
    return Simulator(
        market, config, env_ids_N=torch.arange(n), seed=3, bars=(0, market.n_bars), history=4, renew=renew
    )


def begin(simulator, mask, symbols, bars):
    simulator.begin_some(torch.tensor(mask), torch.tensor(symbols)[:, None], torch.tensor(bars))


def test_begun_anew_is_as_begun_first_and_the_others_go_on():
    market, config = build_market(missing=0.1), all_costs(fill_lag=2)
    together, alone = build(market, config, 3), build(market, config, 1)
    begin(together, [True] * 3, [0, 1, 2], [40, 50, 60])
    weight = torch.tensor([[1.5], [-1.0], [0.7]], dtype=torch.float64)
    for _ in range(9):
        together.step(weight)
    untouched = together.observe()[[0, 2]]
    begin(together, [False, True, False], [-9, 0, 99], [-9, 30, 9999])  # what is masked out is not read
    begin(alone, [True], [0], [30])
    assert torch.equal(together.observe()[[0, 2]], untouched)
    assert together.bar_N.tolist() == [49, 30, 69] and together.symbol_NA[:, 0].tolist() == [0, 0, 2]
    for _ in range(9):
        assert torch.equal(together.observe()[1:2], alone.observe())
        one, two = together.step(weight), alone.step(weight[1:2])
        for name in Step._fields:
            assert torch.equal(getattr(one, name)[1:2], getattr(two, name)), name


def test_a_ruined_account_stays_as_it_fell_until_its_caller_begins_it():
    market = crash(build_market(bars=200), 100)
    kept, renewed = build(market, reckless(), 2), build(market, reckless(), 2, renew=True)
    for simulator in (kept, renewed):
        begin(simulator, [True] * 2, [0, 0], [95, 95])
    weight = torch.tensor([[4.0], [0.0]], dtype=torch.float64)
    while True:
        step, other = kept.step(weight), renewed.step(weight)
        for name in Step._fields:
            assert torch.equal(getattr(step, name), getattr(other, name)), name
        if step.terminated_N[0]:
            break
    assert step.equity_N[0] == 0 and step.equity_raw_N[0] < 0
    assert torch.equal(step.equity_raw_N[1:], step.equity_N[1:])
    assert kept.state_dict()["equity_N1"][0] == 0 and renewed.state_dict()["equity_N1"][0] == 1e5
    begin(kept, [True, False], [0, 0], [int(kept.bar_N[0]), 0])
    assert torch.equal(kept.observe(), renewed.observe())


def test_nobody_runs_past_the_data_after_some_began_later_than_others():
    simulator = build(build_market(bars=60), all_costs(), 2)
    begin(simulator, [True] * 2, [0, 0], [20, 20])
    begin(simulator, [False, True], [0, 0], [0, 57])
    flat = torch.zeros(2, 1)
    simulator.step(flat)
    simulator.step(flat)
    with pytest.raises(HpcrlError, match="ended"):
        simulator.step(flat)
    begin(simulator, [False, True], [0, 0], [0, 30])
    for _ in range(29):
        simulator.step(flat)
    with pytest.raises(HpcrlError, match="ended"):
        simulator.step(flat)


def test_a_place_outside_the_data_is_refused():
    simulator = build(build_market(bars=60), all_costs(), 2)
    for symbols, bars in (([0, 3], [20, 20]), ([0, -1], [20, 20]), ([0, 0], [20, 60])):
        with pytest.raises(HpcrlError, match="must lie in"):
            begin(simulator, [True, True], symbols, bars)
