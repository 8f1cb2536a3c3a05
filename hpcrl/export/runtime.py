"""``PolicySession``: an exported policy in a trading system. onnxruntime, numpy, TA-Lib; no torch, no pandas.

    session = PolicySession("policy.onnx")
    session.warm_up(closed_bars)                      # an iterable of {symbol: Bar}, oldest first
    weights = session.step({"MSFT": bar}, account)    # {"MSFT": 0.5}: at each bar's close

Features come from the functions that staged the training data, over the last 2,048 bars; account entries
from the broker's report. The weights of a close are to be traded at the next open, as in training. Bars and
accounts that are refused (``HpcrlError``) change nothing: the session goes on with the next good call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from hpcrl.export.accounts import Account, Accounts, Marks
from hpcrl.export.bars import DAY, WINDOW, Bar, BarWindow, Clock, check_bar, check_ts, iso, own_features
from hpcrl.export.metadata import open_policy
from hpcrl.export.session_file import pack, unpack
from hpcrl.export.stream import Stream
from hpcrl.types import HpcrlError

__all__ = ["Account", "Bar", "PolicySession"]

Bars = Mapping[str, Bar | None]


class PolicySession:
    """N accounts of A assets: with assets "single" one per symbol, with "all" one over all symbols."""

    def __init__(self, path: str | Path, symbols: Iterable[str] | None = None, *, threads: int = 1) -> None:
        """``symbols``: with assets "single" any; default: those of training. HpcrlError: no such file,
        another schema, symbols that the policy does not trade."""
        self.path = Path(path)
        graph, self.metadata = open_policy(path, threads=threads)
        self.symbols = self._pick(symbols)
        single = self.metadata.assets == "single"
        symbols_NA = [[symbol] for symbol in self.symbols] if single else [list(self.symbols)]
        self._shape = (len(symbols_NA), len(symbols_NA[0]))
        self._accounts = Accounts(symbols_NA, self.metadata.config["env"])
        names, own = self.metadata.feature_names, own_features(self.metadata)
        self._windows = {symbol: BarWindow(symbol, names, own) for symbol in self.symbols}
        self._clock = Clock(self.metadata)
        self._place: int | None = None
        """Of the last bar on the clock."""
        self._past: deque[tuple[float, tuple[int, ...]]] = deque(maxlen=self.metadata.history + 1)
        """Of the last bars before the first decision: time within the session, present bars by symbol."""
        self._feature_SF = np.zeros((len(self.symbols), len(names)), dtype=np.float32)
        self._age_N = np.zeros(self._shape[0], dtype=np.int64)
        self._stream = Stream(graph, self.metadata, self._shape[0])
        self.token_NE = np.zeros((self._shape[0], self.metadata.n_entries), dtype=np.float32)
        """What the policy saw at the last step."""
        self.params_NAP: np.ndarray | None = None
        """What the actor gave there: logits of the positions, or a Gaussian's two numbers."""

    def _pick(self, symbols: Iterable[str] | None) -> tuple[str, ...]:
        trained = self.metadata.symbols
        if symbols is None:
            return trained
        chosen = (symbols,) if isinstance(symbols, str) else tuple(symbols)
        if not chosen or len(set(chosen)) < len(chosen):
            raise HpcrlError(f"symbols are {', '.join(chosen) or 'none'}; each once, at least one, is needed")
        if self.metadata.assets == "all" and set(chosen) != set(trained):
            raise HpcrlError(
                f"symbols are {', '.join(chosen)}; the policy trades {', '.join(trained)} from one account"
            )
        return chosen if self.metadata.assets == "single" else trained

    @property
    def bars_wanted(self) -> int:
        """Bars of a warm-up after which features and memory are those of any longer one."""
        return WINDOW + self.metadata.history

    @property
    def bars_needed(self) -> int:
        """Bars of each symbol before the first decision, at least."""
        return self.metadata.burn_in

    @property
    def last_ts(self) -> int | None:
        """Stamp of the last bar that was fed."""
        return None if self._place is None else self._clock.ts(self._place)

    @property
    def next_ts(self) -> int | None:
        """Stamp of the bar that must come next; None: any. HpcrlError beyond the known sessions."""
        return None if self._place is None else self._clock.ts(self._place + 1)

    @property
    def own_features(self) -> tuple[str, ...]:
        """The features that must come with each bar, as no bar's prices tell them."""
        return own_features(self.metadata)

    def day(self, ts: int) -> str | None:
        """Date of the session that the bar which starts at ``ts`` is of; None: no bar starts there.

        HpcrlError: milliseconds.
        """
        check_ts(ts)
        try:
            day, _ = self._clock.session(self._clock.place(ts))
        except HpcrlError:
            return None
        return iso(day * DAY)[:10]

    def warm_up(self, rows: Iterable[Bars], ts: int | None = None) -> int:
        """Feed closed bars from before the first decision, oldest first; returns how many rows were taken.

        Give ``bars_wanted`` of them where there are as many, and at least ``bars_needed``. ``ts``: as in
        ``step``, for one row. HpcrlError: as ``step``; the rows before the refused one are taken.
        """
        if self._accounts.begun:
            raise HpcrlError("warm_up after the first step: the session is in use; feed its bars to step")
        count = 0
        for bars in rows:
            self._take(*self._judge(bars, ts))
            count += 1
        return count

    def step(
        self, bars: Bars | Bar, account: Account | Mapping[str, Account], ts: int | None = None
    ) -> dict[str, float]:
        """Target weights (share of the account's equity) by symbol, decided at the close of these bars.

        ``bars``: a Bar of every symbol, None for one that did not trade; of one symbol a bare Bar will do.
        ``account``: as it stands after the close; with several accounts (assets "single") one by symbol.
        ``ts``: the bar's start, needed where no symbol traded.
        HpcrlError: bars or an account that ``bars`` and ``accounts`` refuse, too few bars so far.
        """
        place, judged = self._judge(bars, ts)
        accounts = self._reports(account)
        if not self._accounts.begun:
            self._check_burn_in(judged)
        before = self._place, list(self._past)
        self._take(place, judged)
        try:
            self._look(judged)
        except HpcrlError:  # a feature that is not finite
            self._untake(judged, *before)
            raise
        self._accounts.update(accounts, self._marks(judged))
        entries = self._accounts.entries().astype(np.float32)
        _, session_time = self._clock.session(place)
        self.token_NE = np.concatenate([self._market_part(self._feature_SF, session_time), entries], axis=1)
        weight_NA = self._run(self.token_NE)
        self._accounts.decided(weight_NA)
        return dict(zip(self.symbols, weight_NA.ravel().tolist(), strict=True))

    # ---- bars

    def _judge(self, bars: Bars | Bar, ts: int | None) -> tuple[int, dict[str, Bar | None]]:
        """The bars' place on the clock, and an entry for every symbol. Changes nothing."""
        if not isinstance(bars, (Bar, Mapping)):
            raise HpcrlError(
                f"bars are {type(bars).__name__}; {{symbol: Bar}} is needed, a symbol's may be None"
            )
        if isinstance(bars, Bar):
            if len(self.symbols) > 1:
                raise HpcrlError(f"a bare bar, but symbols {', '.join(self.symbols)}: give {{symbol: Bar}}")
            bars = {self.symbols[0]: bars}
        for symbol in bars:
            if symbol not in self._windows:
                raise HpcrlError(
                    f"bar of unknown symbol {symbol!r}; the session has {', '.join(self.symbols)}"
                )
        for symbol in self.symbols:
            if symbol not in bars:
                raise HpcrlError(f"no bar of {symbol}; give None where it did not trade")
            if not isinstance(bars[symbol], Bar | None):
                raise HpcrlError(f"{symbol}: {type(bars[symbol]).__name__} is no Bar; give a Bar, or None")
        stamps = {symbol: bar.ts for symbol, bar in bars.items() if bar is not None}
        if ts is not None:
            stamps["ts"] = ts
        if not stamps:
            raise HpcrlError("no symbol traded and no ts was given; say which bar this is: ts=<unix seconds>")
        for name, stamp in stamps.items():
            if isinstance(stamp, bool) or not isinstance(stamp, (int, np.integer)):
                raise HpcrlError(f"{name}: ts is {stamp!r}; whole unix seconds UTC are needed")
        stamp = next(iter(stamps.values()))
        for name, other in stamps.items():
            if other != stamp:
                raise HpcrlError(f"bars of different stamps: {iso(stamp)}, and {iso(other)} of {name}")
        place = self._clock.place(int(stamp))
        self._clock.check_next(self._place, place)
        for symbol in self.symbols:
            bar = bars[symbol]
            if bar is not None:
                check_bar(symbol, bar, self._windows[symbol].own)
        return place, {symbol: bars[symbol] for symbol in self.symbols}

    def _take(self, place: int, bars: Bars) -> None:
        day, session_time = self._clock.session(place)
        keep = 0 if self._accounts.begun else self.metadata.history + 1
        for symbol, bar in bars.items():
            if bar is not None:
                self._windows[symbol].add(bar, day, keep)
        self._place = place
        if not self._accounts.begun:
            counts = tuple(window.count for window in self._windows.values())
            self._past.append((session_time, counts))

    def _untake(self, bars: Bars, place: int | None, past: list[tuple[float, tuple[int, ...]]]) -> None:
        for symbol, bar in bars.items():
            if bar is not None:
                self._windows[symbol].drop_last()
        self._place = place
        self._past.clear()
        self._past.extend(past)

    def _look(self, bars: Bars) -> None:
        """The features after these bars; of the first decision the memory, too. HpcrlError: not finite."""
        if not self._accounts.begun:
            self._begin()
            return
        found_SF = self._feature_SF.copy()
        for s, symbol in enumerate(self.symbols):
            if bars[symbol] is not None:  # else what was last known
                found_SF[s] = self._windows[symbol].features()[0]
        self._feature_SF = found_SF

    def _check_burn_in(self, bars: Bars) -> None:
        for symbol, window in self._windows.items():
            if window.count + (bars[symbol] is not None) <= self.metadata.burn_in:
                raise HpcrlError(
                    f"{symbol}: {window.count} bars so far, {self.metadata.burn_in} are needed before the "
                    f"first decision (better {self.bars_wanted:,}); feed them to warm_up"
                )

    def _marks(self, bars: Bars) -> Marks:
        windows = self._windows.values()
        close = [window.close for window in windows]
        opens = [mark if bar is None else bar.open for bar, mark in zip(bars.values(), close, strict=True)]
        splits = [1.0 if bar is None else bar.split for bar in bars.values()]
        needed = self._accounts.rewards.needs_sigma
        sigma = [window.sigma() if needed else 0.0 for window in windows]
        return Marks(*(np.array(each).reshape(self._shape) for each in (close, opens, splits, sigma)))

    # ---- accounts and tokens

    def _reports(self, account: Account | Mapping[str, Account]) -> list[Account]:
        """One account per row of the batch. HpcrlError: other ones than the policy has."""
        if isinstance(account, Account):
            if self._shape[0] > 1:
                raise HpcrlError(
                    f"one account, but each of {', '.join(self.symbols)} is traded from its own: give "
                    "{symbol: Account}"
                )
            reports = [account]
        else:
            wanted = self.symbols if self.metadata.assets == "single" else ()
            if not isinstance(account, Mapping) or not all(isinstance(a, Account) for a in account.values()):
                raise HpcrlError("account: an Account is needed, or {symbol: Account} with several accounts")
            if set(account) != set(wanted):
                raise HpcrlError(
                    f"accounts of {', '.join(account) or 'nobody'}; "
                    f"{', '.join(wanted) or 'one account over all symbols, no mapping,'} was expected"
                )
            reports = [account[symbol] for symbol in wanted]
        for n, one in enumerate(reports):
            self._accounts.check(one, n)
        return reports

    def _market_part(self, feature_SF: np.ndarray, session_time: float) -> np.ndarray:
        """[N, A x F + 2]: sin and cos of half a turn per session behind the features."""
        n = self._shape[0]
        angle = session_time * np.pi
        time_2 = np.array([np.sin(angle), np.cos(angle)], dtype=np.float32)
        return np.concatenate([feature_SF.reshape(n, -1), np.broadcast_to(time_2, (n, 2))], axis=1)

    def _begin(self) -> None:
        """Features of the bars so far, and the memory that flat tokens of the bars before the last leave."""
        depth = len(self._past)
        known_SMF = np.zeros((len(self.symbols), depth, self._feature_SF.shape[1]), dtype=np.float32)
        ready_SM = np.zeros((len(self.symbols), depth), dtype=bool)
        for s, window in enumerate(self._windows.values()):
            count_M = np.array([counts[s] for _, counts in self._past])
            # A symbol's features are read from its bar number burn_in on (counted from 0).
            ready_SM[s] = count_M > self.metadata.burn_in
            rows = min(window.count - int(count_M[0]) + 1, window.count)
            back_M = np.minimum(window.count - count_M, rows - 1)
            known_SMF[s] = window.features(rows)[rows - 1 - back_M]
        self._feature_SF = known_SMF[:, -1].copy()
        ready_NM = np.asarray(ready_SM.reshape(*self._shape, depth).all(axis=1))
        history, cash = self.metadata.history, self._shape[1] * (self._feature_SF.shape[1] + 4) + 2
        for back in range(history, 0, -1):  # all of them: where the ring of a transformer stands counts, too
            token_NE = np.zeros_like(self.token_NE)
            at = depth - 1 - back
            self._age_N = np.zeros_like(self._age_N)
            if at >= 0:
                market = self._market_part(known_SMF[:, at], self._past[at][0])
                token_NE[:, : market.shape[1]] = market
                token_NE[:, cash] = 1.0
                token_NE *= ready_NM[:, at, None]
                self._age_N = ready_NM[:, :at].sum(1)
            self._run(token_NE)
        self._age_N = ready_NM[:, :-1].sum(1)
        self._past.clear()

    def _run(self, token_NE: np.ndarray) -> np.ndarray:
        """Target weights [N, A] float64 of one token per account; takes the token into the memory."""
        outputs = self._stream.step(token_NE, self._age_N)
        self._age_N = self._age_N + 1
        self.params_NAP = outputs.params_NAP
        return outputs.weight_NA

    # ---- between days

    def state(self) -> bytes:
        """All that the next steps depend on, but for the ONNX file; for ``load_state``, also elsewhere."""
        arrays = {f"memory.{name}": value for name, value in self._stream.memory.items()}
        arrays |= {f"account.{name}": value for name, value in self._accounts.state().items()}
        for s, window in enumerate(self._windows.values()):
            arrays |= {f"bars.{s}.{name}": value for name, value in window.state().items()}
        arrays |= {"age": self._age_N, "features": self._feature_SF}
        arrays["past_time"] = np.array([time for time, _ in self._past], dtype=np.float64)
        counts = np.array([counts for _, counts in self._past], dtype=np.int64)
        arrays["past_count"] = counts.reshape(-1, len(self.symbols))
        arrays["place"] = np.array(-1 if self._place is None else self._place)
        return pack(arrays, self.metadata, self.symbols)

    def load_state(self, saved: bytes) -> None:
        """Go on where ``state`` was taken, bit for bit. HpcrlError: no state, or that of another session."""
        mine = unpack(self.state(), self.metadata, self.symbols)
        arrays = unpack(saved, self.metadata, self.symbols, like=mine)

        def part(prefix: str) -> dict[str, np.ndarray]:
            return {name[len(prefix) :]: each for name, each in arrays.items() if name.startswith(prefix)}

        self._stream.memory = {name: arrays[f"memory.{name}"] for name in self._stream.memory}
        self._accounts.load_state(part("account."))
        for s, window in enumerate(self._windows.values()):
            window.load_state(part(f"bars.{s}."))
        self._age_N, self._feature_SF = arrays["age"], arrays["features"]
        self._past.clear()
        for time, counts in zip(arrays["past_time"].tolist(), arrays["past_count"].tolist(), strict=True):
            self._past.append((time, tuple(counts)))
        self._place = int(arrays["place"]) if arrays["place"] >= 0 else None
