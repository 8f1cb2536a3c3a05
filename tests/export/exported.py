"""Exported policies for the runtime's tests: untrained, on real or made-up bars; and how torch plays them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hpcrl.checkpoint.load import LoadedRun
from hpcrl.config.load import validate
from hpcrl.env.simulator import Simulator
from hpcrl.evaluate.backtest import Plan, PolicyStrategy, make_plan, play_plan
from hpcrl.evaluate.track import Track
from hpcrl.export.accounts import Account
from hpcrl.export.bars import Bar
from hpcrl.export.export import _with_metadata, describe
from hpcrl.export.onnx_model import memory_notes, streaming_step, to_onnx
from hpcrl.market.dataset import Market
from hpcrl.market.features import FEATURES
from hpcrl.market.load import load_market
from hpcrl.market.scaler import fit_scaler
from hpcrl.market.tensors import MarketTensors
from hpcrl.policy import build_policy

POLICY = {"d_model": 32, "layers": 2, "heads": 2, "window": 16}
COSTS = {"impact_coef": 0.5, "half_spread": 2e-4, "bps": 1.0}
EVERY_REWARD = {
    "log_return": 0.5,
    "turnover": 0.1,
    "drawdown": 0.3,
    "differential_sharpe": 0.001,
    "differential_downside": 0.002,
    "mean_variance": 0.7,
    "crra": 0.2,
    "vol_scaled": 0.4,
    "potential": 0.6,
    "eta": 0.02,
}


def build(folder: Path, market_file: Path, *, seed: int = 0, bold: float = 60.0, **sections) -> LoadedRun:
    """A run with a random policy that changes its mind often; ``folder/policy.onnx`` is its export."""
    tree = {
        "market": {"path": str(market_file), **sections.get("market", {})},
        "env": {"lot": 0, "costs": COSTS, **sections.get("env", {})},
        "policy": POLICY | sections.get("policy", {}),
        "learn": {"rollout": 32, "sequence_length": 16, "batch_size": 64},
        "engine": {"precision": "fp32"},
    }
    config = validate(tree, "test")
    market = load_market(config.market)
    scaler = fit_scaler(market, *market.split_range("train"))
    tensors = market.to("cpu", scaler)
    bars = (0, market.n_bars)
    probe = Simulator(tensors, config.env, env_ids_N=torch.arange(1), seed=0, bars=bars, history=1)
    torch.manual_seed(seed)
    policy = build_policy(config.policy, probe.n_entries, probe.n_assets).eval().requires_grad_(False)
    policy.actor.weight.mul_(bold)
    checkpoint = folder / "checkpoint_epoch_1.pt"
    checkpoint.write_bytes(b"stands for the weights, which the tests hold in memory")
    run = LoadedRun(
        path=folder,
        checkpoint=checkpoint,
        epoch=1,
        env_steps=1,
        config=config,
        policy=policy,
        scaler=scaler,
        n_entries=probe.n_entries,
        n_assets=probe.n_assets,
        data_sha256=market.sha256,
        data_source=market.source,
        data_path=str(market_file),
        record=None,
    )
    step = streaming_step(policy, scaler, probe.n_entries)
    metadata = describe(run, market, memory=memory_notes(step))
    (folder / "policy.onnx").write_bytes(_with_metadata(to_onnx(step, probe.n_entries), metadata))
    return run


class _Watched(PolicyStrategy):
    """Notes the account and the token of every decision."""

    def __init__(self, policy, seen: list) -> None:
        super().__init__(policy)
        self.seen = seen

    def weights(self, simulator, step, position_NA):
        state = simulator._state
        noted = {
            name: getattr(state, name).clone().numpy()
            for name in ("cash_N1", "equity_N1", "quantity_NA", "entry_NA", "value_NA")
        }
        noted["token"] = simulator.observe().clone().numpy()
        params_NAP, _ = self._policy.step(
            simulator.observe(), self._age_N, tuple(m.clone() for m in self._memory)
        )
        noted["params"] = params_NAP.clone().numpy()
        target_NA = super().weights(simulator, step, position_NA)
        noted["target"] = target_NA.double().numpy()
        self.seen.append(noted)
        return target_NA


@dataclass
class Played:
    """What evaluation's simulator and the torch policy did in rows [lo, hi), one account group."""

    run: LoadedRun
    market: Market
    tensors: MarketTensors
    plan: Plan
    track: Track
    seen: list[dict[str, np.ndarray]]

    @property
    def first(self) -> int:
        """Row of the first decision."""
        return self.plan.groups[0].start

    def bars(self, row: int) -> dict[str, Bar | None]:
        return row_bars(self.market, row)

    def account(self, step: int, n: int) -> Account:
        """As the simulator has account ``n`` before decision ``step``."""
        noted, assets = self.seen[step], self.plan.groups[0].symbol_nA[n]
        names = [self.market.symbols[s] for s in assets]
        quantity, entry = noted["quantity_NA"][n], noted["entry_NA"][n]
        return Account(
            equity=float(noted["equity_N1"][n, 0]),
            cash=float(noted["cash_N1"][n, 0]),
            positions=dict(zip(names, quantity.tolist(), strict=True)),
            average_prices={name: float(e) for name, q, e in zip(names, quantity, entry, strict=True) if q},
            traded=float(self.track.traded_TN[step - 1, n]) if step else None,
        )

    def report(self, step: int) -> Account | dict[str, Account]:
        if self.run.config.env.assets == "all":
            return self.account(step, 0)
        return {symbol: self.account(step, n) for n, symbol in enumerate(self.market.symbols)}


def play(run: LoadedRun, lo: int, hi: int) -> Played:
    market = load_market(run.config.market)
    tensors = market.to("cpu", run.scaler)
    plan = make_plan(tensors, run.config.env, lo, hi)
    assert len(plan.groups) == 1, "one group, so that steps are rows"
    seen: list = []
    track = play_plan(
        tensors,
        run.config.env,
        plan,
        lambda group: _Watched(run.policy, seen),
        history=run.config.policy.padded_history,
    )
    return Played(run, market, tensors, plan, track, seen)


def row_bars(market: Market, row: int) -> dict[str, Bar | None]:
    """Every symbol's bar of that row, None where missing."""
    found: dict[str, Bar | None] = {}
    own = [i for i, name in enumerate(market.feature_names) if name not in FEATURES]
    for s, symbol in enumerate(market.symbols):
        found[symbol] = None
        if market.present_BS[row, s]:
            prices = (
                float(getattr(market, f"{n}_BS")[row, s]) for n in ("open", "high", "low", "close", "volume")
            )
            features = {market.feature_names[i]: float(market.feature_BSF[row, s, i]) for i in own}
            found[symbol] = Bar(
                int(market.ts_B[row]), *prices, split=float(market.split_BS[row, s]), features=features
            )
    return found
