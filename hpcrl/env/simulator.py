"""N environments x A assets on the market's device: episodes, account, reward, token.

At the close of bar t the agent sees bars <= t (``observe``) and sets target weights; ``step`` fills them
at the open of bar t+1 (or where ``fill_lag`` says) and marks at its close. All environments start together
(``begin_episodes``) and end together when the caller stops; only a bankrupt one starts anew in between, flat
and without history.
With ``renew=False`` nobody starts anew unasked: the caller sees the ruined account and calls ``begin_some``.

``step`` and ``observe`` never wait for the device and have static shapes, and the state lives in tensors
that are updated in place, as a CUDA graph needs it (the rollout around them is not captured yet).

Environments share nothing: the same
seed and global id give the same episodes whatever N is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from hpcrl.config.env import EnvConfig
from hpcrl.env.account import Account, Outcome, advance, open_accounts, over_assets
from hpcrl.env.bars import CLOSE, Bar, Rules, pack_market
from hpcrl.env.episodes import Starts, find_starts
from hpcrl.env.rewards import Rewards, StepFacts, known_mean
from hpcrl.env.token import TokenWriter, market_rows
from hpcrl.market.tensors import MarketTensors
from hpcrl.types import HpcrlError


class Step(NamedTuple):
    """One step of every environment. Money in currency, float64, unless said otherwise."""

    reward_N: Tensor  # float32, the shaped reward
    log_return_N: Tensor  # ln(E'/E); ln(reward_floor) where bankrupt
    terminated_N: Tensor  # bool: bankrupt
    equity_N: Tensor  # after the step; 0 where bankrupt, although a new episode has begun
    turnover_N: Tensor  # traded value / equity before
    fees_N: Tensor
    spread_N: Tensor
    impact_N: Tensor
    financing_N: Tensor
    dividend_N: Tensor
    weight_NA: Tensor  # position after the step: market value / equity
    equity_raw_N: Tensor  # as equity_N, but negative where a bankrupt account owes


@dataclass(frozen=True)
class _State:
    """Everything that an episode is, a few dozen bytes per environment."""

    cash_N1: Tensor
    quantity_NA: Tensor
    equity_N1: Tensor
    called_N1: Tensor  # bool: margin call
    value_NA: Tensor  # market value at the last mark
    entry_NA: Tensor  # average entry price (opens, without costs)
    age_NA: Tensor  # bars since entry
    peak_N1: Tensor  # the episode's highest equity
    drawdown_N1: Tensor  # depth below it, in [0, 1]
    target_NA: Tensor  # previous target weight
    reward_N1: Tensor  # previous shaped reward
    row_NA: Tensor  # int64: symbol x B + bar
    episode_N: Tensor  # int64: number of the next episode to draw
    pending_NA: Tensor | None  # order that waits, NaN where none; None unless fill_lag is 2

    def named(self) -> dict[str, Tensor]:
        every = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: tensor for name, tensor in every.items() if tensor is not None}


class Simulator:
    def __init__(
        self,
        market: MarketTensors,
        config: EnvConfig,
        *,
        env_ids_N: Tensor,
        seed: int,
        bars: tuple[int, int],
        history: int,
        renew: bool = True,
    ) -> None:
        """``env_ids_N``: global ids, int64; ``bars``: half-open rows in which decisions and marks lie
        (history may reach back before it); ``history``: M, tokens that an episode's start hands out;
        ``renew``: a bankrupt account starts anew by itself."""
        if not 0 <= bars[0] < bars[1] <= market.n_bars:
            raise HpcrlError(f"bars {bars[0]} to {bars[1]} are no rows of a market of {market.n_bars} bars")
        self.market = market
        self.rules = Rules.from_config(config)
        self.device = market.device
        self.n_envs = len(env_ids_N)
        self.all_assets = config.assets == "all"
        self.n_assets = market.n_symbols if self.all_assets else 1
        self._ids_N = env_ids_N.to(device=self.device, dtype=torch.int64)
        self._seed = seed
        self._bars = bars
        self._history = history
        self._renews = renew
        self.rewards = Rewards(config.rewards, self.n_envs, self.device)
        self.reward_entries = self.rewards.entry_names
        self._sigma_R = market.sigma_BS.T.flatten() if self.rewards.needs_sigma else None
        self._packed = pack_market(market, self.rules)
        self._token = TokenWriter(market_rows(market), self.n_envs, self.n_assets, len(self.reward_entries))
        self.n_entries = self._token.n_entries
        self._starts: dict[int, Starts] = {}
        self._steps = 0  # length of the episodes; 0: begun by begin_at, which has no length
        self._some_called = True  # False: known that nobody is
        self._left = 0  # steps until the data or the episode end
        self._state = self._fresh_state()

    def _fresh_state(self) -> _State:
        n, a = self.n_envs, self.n_assets
        account = open_accounts(n, a, self.rules, self.device)
        zero_NA = torch.zeros_like(account.quantity_NA)
        return _State(
            cash_N1=account.cash_N1,
            quantity_NA=account.quantity_NA,
            equity_N1=account.equity_N1,
            called_N1=account.called_N1,
            value_NA=zero_NA,
            entry_NA=zero_NA.clone(),
            age_NA=zero_NA.clone(),
            peak_N1=account.equity_N1.clone(),
            drawdown_N1=torch.zeros_like(account.cash_N1),
            target_NA=zero_NA.clone(),
            reward_N1=torch.zeros_like(account.cash_N1),
            row_NA=torch.zeros((n, a), dtype=torch.int64, device=self.device),
            episode_N=torch.zeros(n, dtype=torch.int64, device=self.device),
            pending_NA=account.pending_NA,
        )

    @property
    def bar_N(self) -> Tensor:
        """int64: the bar whose close each environment has just seen."""
        return self._state.row_NA[:, 0] % self.market.n_bars

    @property
    def symbol_NA(self) -> Tensor:
        return self._state.row_NA // self.market.n_bars

    @property
    def quantity_NA(self) -> Tensor:
        """float64, signed quantity held; the state itself, so it changes with the next step."""
        return self._state.quantity_NA

    @property
    def equity_N(self) -> Tensor:
        """float64, equity at that close; the state itself, so it changes with the next step."""
        return self._state.equity_N1.view(-1)

    def holding(self, position_NA: Tensor) -> Tensor:
        """The weights to ask for so that nothing more is traded than what is on its way: the position
        (market value / equity), or with ``fill_lag`` 2 the quantity that waits to be filled."""
        state = self._state
        if state.pending_NA is None or self.rules.sizing == "fill":
            return position_NA
        coming_NA = state.pending_NA * self._packed.table_RK[state.row_NA, CLOSE] / state.equity_N1
        return torch.where(coming_NA.isnan(), position_NA, coming_NA)

    # ---- episodes

    def prepare(self, steps: int) -> None:
        """Find the starts of episodes of ``steps`` steps; HpcrlError if none fits."""
        if steps not in self._starts:
            self._starts[steps] = find_starts(
                self.market, steps=steps, bars=self._bars, all_assets=self.all_assets
            )

    def begin_episodes(self, steps: int) -> tuple[Tensor, Tensor]:
        """Start a new episode of ``steps`` steps everywhere, at a start drawn for each environment.

        Returns history_NME float32 (the market's previous M bars with a flat account, entry M-1 is the
        bar before the first decision, zero where not available) and length_N int64 (how many are real).
        """
        self.prepare(steps)
        self._steps = self._left = steps
        symbol_NA, bar_N = self._starts[steps].draw(self._seed, self._ids_N, self._state.episode_N)
        return self._begin(symbol_NA, bar_N)

    def skip_to_episode(self, number: int) -> None:
        """The next episode drawn by every environment is ``number``."""
        self._state.episode_N.fill_(number)

    def begin_at(self, symbol_NA: Tensor, bar_N: Tensor) -> tuple[Tensor, Tensor]:
        """Start every environment at the given symbols and decision bars (int64); returns as
        ``begin_episodes``. A bankrupt account then begins anew, flat, at the bar where it ended."""
        n, a = self.n_envs, self.n_assets
        if symbol_NA.shape != (n, a) or bar_N.shape != (n,):
            shapes = f"{tuple(symbol_NA.shape)} and {tuple(bar_N.shape)}"
            raise HpcrlError(f"begin_at needs symbols [{n}, {a}] and bars [{n}], got {shapes}")
        self._check_places(symbol_NA, bar_N)
        self._steps, self._left = 0, self._bars[1] - 1 - int(bar_N.max())
        return self._begin(symbol_NA.to(self.device), bar_N.to(self.device))

    def begin_some(self, mask_N: Tensor, symbol_NA: Tensor, bar_N: Tensor) -> None:
        """As ``begin_at``, but only where ``mask_N`` says so; the others go on. Waits for the device.

        What stands at the other places of ``symbol_NA`` and ``bar_N`` is not read.
        """
        self._check_places(symbol_NA[mask_N], bar_N[mask_N])
        self._renew(mask_N[:, None], symbol_NA * self.market.n_bars + bar_N[:, None])
        self._steps, self._left = 0, self._bars[1] - 1 - int(self.bar_N.max())

    def _check_places(self, symbol_NA: Tensor, bar_N: Tensor) -> None:
        symbols = self.market.n_symbols
        if bool((symbol_NA < 0).any()) or bool((symbol_NA >= symbols).any()):
            raise HpcrlError(f"begin_at: symbols must lie in 0 to {symbols - 1}, got {symbol_NA.tolist()}")
        low, high = int(bar_N.min()), int(bar_N.max())
        if low < self._bars[0] or high >= self._bars[1]:
            raise HpcrlError(
                f"begin_at: bars must lie in {self._bars[0]} to {self._bars[1] - 1}, got {low} to {high}"
            )

    def _begin(self, symbol_NA: Tensor, bar_N: Tensor) -> tuple[Tensor, Tensor]:
        everyone = torch.ones((self.n_envs, 1), dtype=torch.bool, device=self.device)
        self._renew(everyone, symbol_NA * self.market.n_bars + bar_N[:, None])
        return self._history_before(symbol_NA, bar_N)

    def _history_before(self, symbol_NA: Tensor, bar_N: Tensor) -> tuple[Tensor, Tensor]:
        known_N = self.market.first_bar_S[symbol_NA].max(1).values  # burn-in done for every asset
        length_N = (bar_N - known_N).clamp(0, self._history)
        back_M = torch.arange(self._history, 0, -1, device=self.device)
        bar_NM = (bar_N[:, None] - back_M).clamp_min(0)
        row_NMA = symbol_NA[:, None] * self.market.n_bars + bar_NM[..., None]
        token_KE = self._token.flat(row_NMA.flatten(0, 1))
        history_NME = token_KE.view(self.n_envs, self._history, self.n_entries)
        real_NM = back_M <= length_N[:, None]
        return history_NME.masked_fill_(~real_NM[..., None], 0.0), length_N

    def _renew(self, mask_N1: Tensor, row_NA: Tensor) -> None:
        """Put a flat account at ``row_NA`` where the mask says so; nothing of the old episode stays."""
        state = self._state
        for money_N1 in (state.cash_N1, state.equity_N1, state.peak_N1):
            money_N1.masked_fill_(mask_N1, self.rules.initial_cash)
        for zeroed in (state.quantity_NA, state.value_NA, state.entry_NA, state.age_NA, state.target_NA):
            zeroed.masked_fill_(mask_N1, 0.0)
        state.drawdown_N1.masked_fill_(mask_N1, 0.0)
        state.reward_N1.masked_fill_(mask_N1, 0.0)
        state.called_N1.masked_fill_(mask_N1, False)
        self.rewards.begin(mask_N1)
        if state.pending_NA is not None:
            state.pending_NA.masked_fill_(mask_N1, math.nan)
        torch.where(mask_N1, row_NA, state.row_NA, out=state.row_NA)
        state.episode_N.add_(mask_N1[:, 0])

    def _renew_bankrupt(self, bankrupt_N1: Tensor) -> None:
        row_NA = self._state.row_NA
        if self._steps:
            starts = self._starts[self._steps]
            symbol_NA, bar_N = starts.draw(self._seed, self._ids_N, self._state.episode_N)
            row_NA = symbol_NA * self.market.n_bars + bar_N[:, None]
        self._renew(bankrupt_N1, row_NA)

    # ---- steps

    def observe(self) -> Tensor:
        """token_NE float32 at the current bar; its layout is described in ``token.py``."""
        state = self._state
        return self._token.write(
            row_NA=state.row_NA,
            value_NA=state.value_NA,
            profit_NA=torch.addcmul(state.value_NA, state.quantity_NA, state.entry_NA, value=-1),
            age_NA=state.age_NA,
            target_NA=state.target_NA,
            cash_N1=state.cash_N1,
            equity_N1=state.equity_N1,
            drawdown_N1=state.drawdown_N1,
            reward_N1=state.reward_N1,
            reward_state=self.rewards.entries(),
        )

    def step(self, weight_NA: Tensor) -> Step:
        """Trade toward the target weights (share of equity, any float dtype) and move on by one bar.

        HpcrlError, and nothing changes, where the episode (or, after ``begin_at``, the data) has no further
        bar, the shape is another, or (on a CPU; elsewhere a look is a wait) a weight is not finite.
        """
        if self._left < 1:
            raise HpcrlError("step: the episode has ended; begin a new one")
        state = self._state
        if weight_NA.shape != state.quantity_NA.shape:  # or it would broadcast in silence
            wanted = list(state.quantity_NA.shape)
            raise HpcrlError(f"step needs weights of shape {wanted}, got {list(weight_NA.shape)}")
        weight_NA = weight_NA.to(torch.float64)
        # On a CPU a look at one value costs 2 us, and three of them save some 15 operations on masks; on an
        # accelerator it would be a wait.
        look = self.device.type == "cpu"
        if look and not math.isfinite(weight_NA.sum().item()):
            self._refuse_weights(weight_NA)
        self._left -= 1
        state.row_NA.add_(1)
        bar = self._packed.at(state.row_NA)
        before = Account(state.cash_N1, state.quantity_NA, state.equity_N1, state.called_N1, state.pending_NA)
        outcome = advance(before, weight_NA, bar, self.rules, look=look, some_called=self._some_called)
        step, shaped_N1 = self._report(outcome)
        self._keep(outcome, bar, weight_NA, shaped_N1)
        if self._renews and outcome.some_bankrupt:
            self._renew_bankrupt(outcome.bankrupt_N1)
        return step

    def _refuse_weights(self, weight_NA: Tensor) -> None:
        for n, a in (~weight_NA.isfinite()).nonzero()[:1].tolist():
            symbol = int(self.symbol_NA[n, a])
            name = self.market.symbols[symbol] if self.market.symbols else f"symbol {symbol}"
            where = f"env {int(self._ids_N[n])}, {name}, bar {int(self.bar_N[n])}"
            raise HpcrlError(f"{where}: the weight is {weight_NA[n, a]:g}; a finite number is needed")

    def _report(self, outcome: Outcome) -> tuple[Step, Tensor]:
        state, equity_N1 = self._state, outcome.account.equity_N1
        turnover_N1 = over_assets(outcome.traded_NA) / state.equity_N1
        torch.maximum(state.peak_N1, equity_N1, out=state.peak_N1)
        drawdown_N1 = (state.peak_N1 - equity_N1).div_(state.peak_N1)
        facts = StepFacts(
            outcome.log_return_N1,
            turnover_N1,
            state.drawdown_N1,
            drawdown_N1,
            outcome.bankrupt_N1,
            (outcome.equity_raw_N1 - state.equity_N1) / state.equity_N1
            if self.rewards.needs_return
            else None,
            None if self._sigma_R is None else known_mean(self._sigma_R[state.row_NA - 1]),
        )
        shaped_N1 = self.rewards.pay(facts)
        state.drawdown_N1.copy_(drawdown_N1)
        step = Step(
            shaped_N1.to(torch.float32).view(-1),
            outcome.log_return_N1.view(-1),
            outcome.bankrupt_N1.view(-1),
            equity_N1.view(-1),
            turnover_N1.view(-1),
            over_assets(outcome.commission_NA).view(-1),
            over_assets(outcome.spread_NA).view(-1),
            over_assets(outcome.impact_NA).view(-1),
            outcome.financing_N1.view(-1),
            outcome.dividend_N1.view(-1),
            # 0 / 0 where bankrupt
            outcome.value_NA / (equity_N1.clamp_min(1e-300) if outcome.some_bankrupt else equity_N1),
            outcome.equity_raw_N1.view(-1),
        )
        return step, shaped_N1

    def _keep(self, outcome: Outcome, bar: Bar, target_NA: Tensor, shaped_N1: Tensor) -> None:
        """Write the step into the state, in place. Entry price and age follow the part of the position
        that was there before: all of it when holding or reducing, none after a flip."""
        state, after, held = self._state, outcome.account, outcome.held_NA
        quantity = after.quantity_NA
        # held / quantity in [0, 1], and 0 (not NaN) when flat
        kept_NA = (held * quantity).div_((quantity * quantity).add_(1e-300)).clamp_(0.0, 1.0)
        entry_NA = state.entry_NA if bar.corporate is None else state.entry_NA / bar.corporate.split
        filled_NA = bar.last if self.rules.fill_lag == 0 else bar.open  # counted as after the bar's split
        torch.lerp(filled_NA, entry_NA, kept_NA, out=state.entry_NA)
        state.age_NA.add_(1.0).mul_(kept_NA.sign_())
        if self._some_called or outcome.some_called:
            state.called_N1.copy_(after.called_N1)
        self._some_called = outcome.some_called
        if state.pending_NA is not None and after.pending_NA is not None:
            state.pending_NA.copy_(after.pending_NA)
        state.cash_N1.copy_(after.cash_N1)
        state.quantity_NA.copy_(quantity)
        state.equity_N1.copy_(after.equity_N1)
        state.value_NA.copy_(outcome.value_NA)
        state.target_NA.copy_(target_NA)
        state.reward_N1.copy_(shaped_N1)

    # ---- checkpoints

    def _named(self) -> dict[str, Tensor]:
        return self._state.named() | self.rewards.named()

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of everything that the next steps depend on, besides market, config and seed."""
        extra = {"env_ids_N": self._ids_N, "episode_steps": torch.tensor([self._steps, self._left])}
        return {name: x.detach().clone().cpu() for name, x in (self._named() | extra).items()}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Continue bit-exactly from ``state_dict`` of a simulator over the same market, config and seed."""
        mine = self._named()
        if not torch.equal(saved["env_ids_N"], self._ids_N.cpu()):
            raise HpcrlError(
                f"the saved environments have other ids ({len(saved['env_ids_N'])} of them) than these "
                f"{self.n_envs}; their state loads only where ids and number are the same"
            )
        for name, tensor in mine.items():
            if saved[name].shape != tensor.shape:
                raise HpcrlError(
                    f"saved {name} has shape {tuple(saved[name].shape)}, not {tuple(tensor.shape)}"
                )
            tensor.copy_(saved[name])
        # Else this simulator's own last step would hide a margin call among the saved ones.
        self._some_called = True
        self._steps, self._left = (int(x) for x in saved["episode_steps"])
        if self._steps:
            self.prepare(self._steps)
