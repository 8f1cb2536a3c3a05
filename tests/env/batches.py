"""Replay cases run side by side in one batch of accounts, with every environment's ledger."""

from collections.abc import Iterator

import torch
from torch import Tensor

from hpcrl.env.account import Account, Outcome, advance, open_accounts
from hpcrl.env.bars import PackedBars
from hpcrl.evaluate.case import Case
from hpcrl.evaluate.replay import _row, _start_row, case_sigma, pack_case

NO_CORPORATE = (1.0, 0.0, 0.0, 1.0)  # split, dividend, payout, listed


class Batch:
    """Environment n plays case n. The cases share rules, assets and the number of bars."""

    def __init__(self, cases: list[Case]) -> None:
        self.cases, self.rules, self.n_assets = cases, cases[0].rules, len(cases[0].assets)
        self.n_bars = len(cases[0].ts_B)
        self.sigma = [case_sigma(case) for case in cases]
        packed = [pack_case(case, sigma_BA) for case, sigma_BA in zip(cases, self.sigma, strict=True)]
        rates = [p.rates_SK for p in packed if p.rates_SK is not None]
        tables = [_with_corporate(p.table_RK) for p in packed]
        self.packed = PackedBars(torch.cat(tables), self.n_bars, torch.cat(rates) if rates else None)
        self.weight_NTA = torch.stack([torch.from_numpy(case.weight_TA) for case in cases])
        symbol_NA = torch.arange(len(cases) * self.n_assets).view(len(cases), self.n_assets)
        self.row_NA = symbol_NA * self.n_bars

    def steps(self) -> Iterator[tuple[int, Account, Outcome]]:
        """(bar, account before, outcome); a bankrupt account starts anew, as in the simulator."""
        account = open_accounts(len(self.cases), self.n_assets, self.rules, torch.device("cpu"))
        fresh = account
        for b in range(1, self.n_bars):
            bar = self.packed.at(self.row_NA + b)
            outcome = advance(account, self.weight_NTA[:, b - 1].contiguous(), bar, self.rules)
            yield b, account, outcome
            account = _renewed(outcome, fresh)

    def ledgers(self) -> list[list[dict]]:
        """The rows of every environment, to its first bankruptcy."""
        rows = [[_start_row(case)] for case in self.cases]
        ended = [False] * len(self.cases)
        for b, before, outcome in self.steps():
            for n in range(len(self.cases)):
                if not ended[n]:
                    rows[n].append(self.row(n, b, before, outcome))
                    ended[n] = bool(outcome.bankrupt_N1[n])
        return rows

    def row(self, n: int, b: int, before: Account, outcome: Outcome) -> dict:
        """Environment n's row of the ledger."""
        one = Outcome(Account(*_only(outcome.account, n)), *_only(outcome[1:], n))
        return _row(self.cases[n], b, Account(*_only(before, n)), one, self.sigma[n][b - 1])


def _with_corporate(table_RK: Tensor) -> Tensor:
    if table_RK.shape[1] > 8:
        return table_RK
    nothing = table_RK.new_tensor(NO_CORPORATE).expand(len(table_RK), 4)
    return torch.cat([table_RK, nothing], 1)


def _renewed(outcome: Outcome, fresh: Account) -> Account:
    pairs = zip(outcome.account, fresh, strict=True)
    return Account(*(x if x is None else torch.where(outcome.bankrupt_N1, new, x) for x, new in pairs))


def _only(fields: tuple, n: int) -> list:
    return [x[n : n + 1] if isinstance(x, Tensor) else x for x in fields]
