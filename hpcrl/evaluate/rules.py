"""Rules: strategies that are written down, not trained.

Each is a ``Strategy`` (``backtest``): the simulator that trains the agent plays it, with the same costs,
fills and sizing. Decisions see bars up to t, those before the played range too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hpcrl.env.simulator import Simulator
from hpcrl.evaluate.baselines import Order
from hpcrl.market.tensors import MarketTensors
from hpcrl.types import HpcrlError

TIE = 1e-12
"""Averages that differ by a smaller share of the price are equal: float noise makes no cross."""


class MovingAverageCross:
    """Long while the simple moving average of the last ``fast`` closes lies above that of the last ``slow``,
    else flat; flat too before ``slow`` bars are known.

    Trades at the crossings alone: in between it asks for what it holds. Play it with ``hold_config``, as
    ``BuyAndHold``: else a fully invested account that has paid its costs is scaled back every bar.
    """

    def __init__(self, fast: int = 10, slow: int = 40, weight: float = 1.0) -> None:
        """``weight``: share of equity when long, of an account over several assets their sum. HpcrlError
        unless 1 <= fast < slow."""
        if not 1 <= fast < slow:
            raise HpcrlError(f"moving averages over {fast} and {slow} bars: 1 <= fast < slow is needed")
        self.fast, self.slow, self.weight = fast, slow, weight

    def begin(self, simulator: Simulator, history_NME: Tensor, length_N: Tensor) -> None:
        self._order = Order(simulator)
        price_BS = unsplit(simulator.market)
        slow_BS = moving_average(price_BS, self.slow)
        self._long_BS = moving_average(price_BS, self.fast) > slow_BS * (1 + TIE)
        self._before_NA = torch.zeros_like(simulator.symbol_NA, dtype=torch.bool)

    def weights(self, simulator: Simulator, step: int, position_NA: Tensor) -> Tensor:
        long_NA = self._long_BS[simulator.bar_N[:, None], simulator.symbol_NA]
        share = self.weight / simulator.n_assets
        self._order.renew(share * long_NA.to(torch.float64), long_NA != self._before_NA)
        self._before_NA = long_NA
        return self._order.weights(position_NA)


def unsplit(market: MarketTensors) -> Tensor:
    """[B, S]: the marks in units of each symbol's first share, without the jumps of splits."""
    return market.close_BS * market.split_BS.cumprod(0)


def moving_average(value_BS: Tensor, bars: int) -> Tensor:
    """[B, S]: mean of the last ``bars`` values, this bar's included; NaN where one is not known."""
    filled_SB = functional.pad(value_BS.T, (bars - 1, 0), value=float("nan"))
    return functional.avg_pool1d(filled_SB[:, None], bars, stride=1)[:, 0].T
