"""The simulator's contract as one plain loop in Decimal, for differential tests.

Written from the contract's text for one account, one asset after the other, without torch. Numbers are
Decimals of 40 digits; a case is the JSON object of ``hpcrl replay``.
"""

from decimal import ROUND_FLOOR, Decimal, getcontext

getcontext().prec = 40
ZERO = Decimal(0)
YEAR = Decimal(365 * 24 * 3600)
LOT_NOISE = Decimal("1e-25")  # what 40 digits leave of a whole lot
ORDER_NOISE = Decimal("1e-12")  # an order below this share of the position is none (a rule of the account)
DEFAULTS = {
    "initial_cash": "100000",
    "sizing": "decision",
    "max_leverage": "1",
    "intrabar": True,
    "participation": None,
    "reward_floor": "1e-4",
}


def dec(value):
    return Decimal(str(value))


class Broke(Exception):
    def __init__(self, flag, prices):
        self.flag, self.prices = flag, prices


class Ledger:
    def __init__(self, case):
        self.case, self.assets = case, case["assets"]
        config = DEFAULTS | case.get("config", {})
        self.sizing, self.intrabar = config["sizing"], config["intrabar"]
        self.participation = None if config["participation"] is None else dec(config["participation"])
        self.c = lambda key: dec(config.get(key, 0))
        self.cash = self.equity = self.c("initial_cash")
        self.quantity = dict.fromkeys(self.assets, ZERO)
        self.last = dict.fromkeys(self.assets)
        self.gone, self.called = set(), False
        self._learn_closes(case["bars"][0])

    def _learn_closes(self, bar):
        for a in self.assets:
            if self._has(bar, a):
                self.last[a] = dec(bar[a]["close"])

    @staticmethod
    def _has(bar, a):
        return a in bar and bar[a].get("close") is not None

    def price(self, bar, a, key):
        """The bar's price, else the last close."""
        if self._has(bar, a):
            return dec(bar[a][key])
        return self.last[a] if self.last[a] is not None else ZERO

    def worth(self, prices):
        return self.cash + sum((self.quantity[a] * prices[a] for a in self.assets), ZERO)

    def run(self):
        rows = [self._row(0, None)]
        for b in range(1, len(self.case["bars"])):
            before = self.equity
            self._new_row()
            try:
                raw = self._step(b)
                broke = None
            except Broke as stop:
                raw, broke = self.worth(stop.prices), stop.flag
            if broke:
                self.flags.append(broke)
                self.cash, self.quantity = raw, dict.fromkeys(self.assets, ZERO)
            self.equity = max(raw, ZERO)
            reward = self.c("reward_floor").ln() if broke else (raw / before).ln()
            rows.append(self._row(b, reward, raw))
            if broke:
                break
        return rows

    def _new_row(self):
        self.fees = self.spread = self.impact = self.financing = self.dividends = ZERO
        self.fills, self.flags = [], []

    def _row(self, b, reward, raw=None):
        if b == 0:
            self._new_row()
        return {
            "bar": b,
            "cash": self.cash,
            "equity": self.equity,
            "equity_raw": self.equity if raw is None else raw,
            "position": dict(self.quantity),
            "fees": self.fees,
            "spread_cost": self.spread,
            "impact_cost": self.impact,
            "financing": self.financing,
            "dividends": self.dividends,
            "fills": self.fills,
            "flags": self.flags,
            "reward": reward,
        }

    def _step(self, b):
        before, bar = self.case["bars"][b - 1], self.case["bars"][b]
        weights = {a: dec(w) for a, w in self.case["actions"][b - 1].items()}
        liquidate, self.called = self.called, False
        if liquidate:
            self.flags.append("margin_call_liquidation")
            weights = dict.fromkeys(weights, ZERO)
        self._corporate(bar)
        self._finance(dec(bar["ts"] - before["ts"]) / YEAR)
        self._delist(bar)
        opens = {a: self.price(bar, a, "open") for a in self.assets}
        if self.worth(opens) <= 0:
            raise Broke("bankrupt_gap", opens)
        self._trade(before, bar, weights, opens)
        if self.intrabar:
            worst = {a: self.price(bar, a, "low" if self.quantity[a] > 0 else "high") for a in self.assets}
            if self.worth(worst) <= 0:
                raise Broke("bankrupt_intrabar", worst)
        self._learn_closes(bar)
        marks = {a: self.last[a] or ZERO for a in self.assets}
        raw = self.worth(marks)
        if raw <= 0:
            raise Broke("bankrupt_close", marks)
        gross = sum((abs(self.quantity[a] * marks[a]) for a in self.assets), ZERO)
        if raw < self.c("maintenance") * gross:
            self.called = True
            self.flags.append("margin_call")
        return raw

    def _corporate(self, bar):
        for a in self.assets:
            facts = bar.get(a, {})
            if facts.get("split") is not None and dec(facts["split"]) != 1:
                self.quantity[a] *= dec(facts["split"])
                if self.last[a] is not None:
                    self.last[a] /= dec(facts["split"])
                self.flags.append(f"split:{a}")
            if facts.get("dividend") is not None and dec(facts["dividend"]) != 0:
                self.dividends += self.quantity[a] * dec(facts["dividend"])
                self.cash += self.quantity[a] * dec(facts["dividend"])
                self.flags.append(f"dividend:{a}")

    def _finance(self, years):
        short = sum((-self.quantity[a] * self.last[a] for a in self.assets if self.quantity[a] < 0), ZERO)
        free = self.cash - short
        rate = self.c("credit_rate") if free > 0 else self.c("debit_rate")
        self.financing = free * rate * years - short * self.c("borrow_rate") * years
        self.cash += self.financing

    def _delist(self, bar):
        for a in self.assets:
            if a in bar and bar[a].get("delist") is not None:
                self.cash += self.quantity[a] * dec(bar[a]["delist"])
                self.quantity[a] = ZERO
                self.gone.add(a)
                self.flags.append(f"delisted:{a}")

    def _trade(self, before, bar, weights, opens):
        weights = {a: weights.get(a, ZERO) for a in self.assets}
        gross = sum(abs(w) for w in weights.values())
        if gross > self.c("max_leverage"):
            weights = {a: w * self.c("max_leverage") / gross for a, w in weights.items()}
            self.flags.append("leverage_scaled")
        equity = self.equity if self.sizing == "decision" else self.worth(opens)
        orders = []
        for a in self.assets:
            price = self.last[a] if self.sizing == "decision" else opens[a]
            target = weights[a] * equity / price
            lot = self.c("lot")
            if lot:
                lots = (abs(target) / lot + LOT_NOISE).to_integral_value(ROUND_FLOOR)
                target = (lots * lot).copy_sign(target)
            order = target - self.quantity[a]
            if abs(order) > ORDER_NOISE * abs(self.quantity[a]):
                orders.append((a, order))
        for a, order in [o for o in orders if o[1] < 0] + [o for o in orders if o[1] > 0]:
            self._fill(a, order, before, bar)

    def _fill(self, a, order, before, bar):
        facts = bar.get(a, {})
        trades = self._has(bar, a) and a not in self.gone
        volume = dec(facts.get("volume") or 0) if trades else ZERO
        size = abs(order) if volume > 0 else ZERO
        if self.participation is not None and volume > 0:
            cap = self.participation * volume
            if size > cap:
                size = cap
                if self.c("lot"):
                    size = (cap / self.c("lot")).to_integral_value(ROUND_FLOOR) * self.c("lot")
        if size == 0:
            self.flags.append(f"no_fill:{a}")
            return
        if size < abs(order):
            self.flags.append(f"partial:{a}")
        side = 1 if order > 0 else -1
        start = dec(facts["open"])
        sigma = before[a].get("sigma")
        impact = self.c("impact_coef") * dec(sigma or 0) * (size / volume).sqrt()
        if sigma is None and self.c("impact_coef"):
            self.flags.append(f"no_sigma:{a}")
        spread = self.c("half_spread") + self.c("slippage")
        price = start * (1 + side * (spread + impact))
        fee = max(self.c("min_fee"), self.c("per_share") * size)
        fee += self.c("bps") * Decimal("1e-4") * abs(size * price)
        self.cash -= side * size * price + fee
        self.quantity[a] += side * size
        self.fees += fee
        self.spread += size * start * spread
        self.impact += size * start * impact
        self.fills.append({"asset": a, "qty": side * size, "price": price, "commission": fee})
