"""Where an episode of a Gymnasium environment starts: drawn from a generator, or where the caller says."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcrl.env.episodes import Starts
from hpcrl.types import HpcrlError


class Places:
    """The starts that fit, by symbol and bar. One account over all symbols has one group, without a name."""

    def __init__(self, starts: Starts, symbols: Sequence[str], *, all_assets: bool, steps: int) -> None:
        self._starts, self._symbols = starts, tuple(symbols)
        self._all_assets, self._steps = all_assets, steps
        self._end_P = starts.end_P.numpy()
        self._count_P = np.diff(self._end_P, prepend=0)
        self._first_P = (starts.offset_P + starts.end_P).numpy() - self._count_P

    def choose(self, generator: np.random.Generator, symbol: Any = None, bar: Any = None) -> int:
        """Number of a start; what is not given is drawn. HpcrlError where no episode fits there."""
        if symbol is None and bar is None:
            return int(generator.integers(self._starts.total))
        groups = [p for p in range(len(self._count_P)) if self._count_P[p]]
        if symbol is not None:
            groups = [self._group(symbol)]
        if bar is not None:
            bar = self._row(bar)
            there = [p for p in groups if 0 <= bar - self._first_P[p] < self._count_P[p]]
            if not there:
                raise HpcrlError(f"reset option bar = {bar}: {self._span(groups, symbol)}")
            group = there[0] if len(there) == 1 else there[int(generator.integers(len(there)))]
        else:
            group = groups[0]
            bar = int(self._first_P[group] + generator.integers(self._count_P[group]))
        return int(self._end_P[group] - self._count_P[group] + bar - self._first_P[group])

    def at(self, start_K: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(symbol_KA, bar_K) of the given starts."""
        return self._starts.at(torch.tensor(start_K, dtype=torch.int64))

    def _group(self, symbol: Any) -> int:
        if self._all_assets:
            raise HpcrlError(
                f"reset option symbol = {symbol!r}: this account trades all of {', '.join(self._symbols)}; "
                'env={"assets": "single"} is needed to choose one'
            )
        if symbol not in self._symbols:
            near = difflib.get_close_matches(str(symbol), self._symbols, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            known = ", ".join(self._symbols[:20]) + (", ..." if len(self._symbols) > 20 else "")
            raise HpcrlError(f"reset option symbol = {symbol!r}{hint}: the market has {known}")
        group = self._symbols.index(symbol)
        if not self._count_P[group]:
            raise HpcrlError(
                f"reset option symbol = {symbol!r}: no episode of {self._steps} steps fits into its bars of "
                "this split; give a smaller episode_steps"
            )
        return group

    @staticmethod
    def _row(bar: Any) -> int:
        if isinstance(bar, (bool, np.bool_)) or not isinstance(bar, (int, np.integer)):
            raise HpcrlError(f"reset option bar = {bar!r}: a row of the market's time grid is needed, an int")
        return int(bar)

    def _span(self, groups: list[int], symbol: Any) -> str:
        first = min(int(self._first_P[p]) for p in groups)
        last = max(int(self._first_P[p] + self._count_P[p]) - 1 for p in groups)
        whose = "" if symbol is None else f" of {symbol}"
        return (
            f"an episode of {self._steps} steps{whose} starts at a bar from {first} to {last} of this split"
        )


def read_options(options: Mapping[str, Any] | None, known: tuple[str, ...]) -> dict[str, Any]:
    """HpcrlError for an option that ``reset`` does not have."""
    if options is not None and not isinstance(options, Mapping):
        raise HpcrlError(f"reset: options = {options!r:.80} must be a dictionary of {', '.join(known)}")
    options = dict(options or {})
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise HpcrlError(f"unknown reset option {name!r}; there are {', '.join(known)}{hint}")
    return options
