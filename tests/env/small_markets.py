"""Small random markets and simulators, made by hand so that these tests depend on no data room."""

from dataclasses import replace

import torch

from hpcrl.config.env import CostConfig, EnvConfig, RewardConfig
from hpcrl.env.simulator import Simulator
from hpcrl.market.tensors import MarketTensors


def build_market(bars=120, symbols=3, features=4, seed=0, missing=0.0, volatility=2e-3) -> MarketTensors:
    """Random walks with opens off the last close, some missing bars, and burn-ins of different length."""
    g = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    present = torch.rand(bars, symbols, generator=g) >= missing
    present[0] = True
    real_close = 50 * torch.exp((noise(bars, symbols) * volatility).cumsum(0))
    index = torch.where(present, torch.arange(bars)[:, None], 0).cummax(0).values
    close = real_close.gather(0, index)
    open_ = torch.where(present, close * torch.exp(noise(bars, symbols) * volatility), close)
    high = torch.where(present, torch.maximum(open_, close) * 1.001, close)
    low = torch.where(present, torch.minimum(open_, close) * 0.999, close)
    volume = torch.where(
        present, torch.rand(bars, symbols, generator=g, dtype=torch.float64) * 9e4 + 1e4, 0.0
    )
    step = 300 + 60_000 * (torch.arange(bars) % 20 == 0)
    return MarketTensors(
        ts_B=1_650_000_000 + step.cumsum(0),
        open_BS=open_,
        high_BS=high,
        low_BS=low,
        close_BS=close,
        volume_BS=volume,
        present_BS=present,
        sigma_BS=torch.full((bars, symbols), 2e-3, dtype=torch.float64),
        split_BS=torch.ones(bars, symbols, dtype=torch.float64),
        dividend_BS=torch.zeros(bars, symbols, dtype=torch.float64),
        delist_BS=torch.full((bars, symbols), float("nan"), dtype=torch.float64),
        feature_BSF=torch.randn(bars, symbols, features, generator=g),
        session_time_B=(torch.arange(bars) % 20 / 19).to(torch.float32),
        first_bar_S=torch.arange(symbols) * 3 + 5,
        last_bar_S=bars - 1 - torch.arange(symbols) * 2,
    )


def all_costs(**more) -> EnvConfig:
    """Every cost and check on, and all reward terms."""
    costs = CostConfig(bps=0.5, slippage=5e-5, credit_rate=0.03, debit_rate=0.06)
    rewards = RewardConfig(
        log_return=1.0,
        turnover=1e-4,
        drawdown=0.5,
        differential_sharpe=1e-3,
        differential_downside=1e-3,
        mean_variance=0.1,
        crra=0.1,
        vol_scaled=0.1,
        potential=0.1,
        eta=0.1,
    )
    settings = {"lot": 0, "max_leverage": 2.0, "maintenance": 0.25, "costs": costs, "rewards": rewards}
    return EnvConfig(**(settings | more))


def reckless(**more) -> EnvConfig:
    """Every cost on, but fills of any size and much leverage: accounts that a crash ruins."""
    costs = CostConfig(bps=0.5, slippage=5e-5, credit_rate=0.03, debit_rate=0.06, participation=None)
    return all_costs(max_leverage=4.0, costs=costs, **more)


def build_simulator(market=None, config=None, n=5, seed=3, bars=None, history=16, ids=None) -> Simulator:
    market = market or build_market()
    ids = torch.arange(n) if ids is None else ids
    config = config or all_costs()
    return Simulator(
        market, config, env_ids_N=ids, seed=seed, bars=bars or (0, market.n_bars), history=history
    )


def crash(market: MarketTensors, at: int, factor: float = 0.2) -> MarketTensors:
    """The same market, but every price falls to ``factor`` from bar ``at`` on."""
    names = ("open_BS", "high_BS", "low_BS", "close_BS")
    later = torch.where(torch.arange(market.n_bars)[:, None] >= at, factor, 1.0)
    return replace(market, **{name: getattr(market, name) * later for name in names})
