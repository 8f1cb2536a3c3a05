"""The simulator's contract as one plain loop in Decimal, for differential tests.

Written from the contract's text for one account, one asset after the other, without torch. Numbers are
Decimals of 40 digits; a case is the JSON object of ``hpcrl replay``. Every fill lag, both limits and costs by
symbol included.
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
    "fill_lag": 1,
    "max_net": None,
    "symbols": {},
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
        self.sizing, self.intrabar, self.lag = config["sizing"], config["intrabar"], int(config["fill_lag"])
        self.max_net = None if config["max_net"] is None else dec(config["max_net"])
        self.config, self.own = config, config["symbols"]
        self.waiting = None  # fill_lag 2: the order that was decided one bar ago
        self.cash = self.equity = self.c("initial_cash")
        self.quantity = dict.fromkeys(self.assets, ZERO)
        self.last = dict.fromkeys(self.assets)
        self.gone, self.called = set(), False
        self._learn_closes(case["bars"][0])

    def c(self, key):
        return dec(self.config.get(key, 0))

    def cost(self, key, a):
        """A cost of one asset; None where it is switched off by null."""
        value = self.own.get(a, {}).get(key, self.config.get(key, 0))
        return None if value is None else dec(value)

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
        order = self._decide({a: dec(w) for a, w in self.case["actions"][b - 1].items()})
        if self.lag == 2:
            order, self.waiting = self.waiting, order
        liquidate, self.called = self.called, False
        if liquidate:
            self.flags.append("margin_call_liquidation")
            zero = dict.fromkeys(self.assets, ZERO)
            order = {"weights": zero, "quantities": dict(zero), "flags": []}
        if self.lag == 0:
            # the close that was just seen, with that bar's volume, before all else of the step
            self._trade(order, before, before, dict(self.last), "close")
        self._corporate(bar, [o for o in (order, self.waiting) if o])
        self._finance(dec(bar["ts"] - before["ts"]) / YEAR)
        self._delist(bar)
        opens = {a: self.price(bar, a, "open") for a in self.assets}
        if self.worth(opens) <= 0:
            raise Broke("bankrupt_gap", opens)
        if self.lag and order:
            self._trade(order, before, bar, opens, "open")
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

    def _decide(self, given):
        """At the close of bar t: weights within the limits, and the quantities if they are fixed here."""
        weights, flags = {a: given.get(a, ZERO) for a in self.assets}, []
        gross = sum(abs(w) for w in weights.values())
        if gross > self.c("max_leverage"):
            weights = {a: w * self.c("max_leverage") / gross for a, w in weights.items()}
            flags.append("leverage_scaled")
        net = abs(sum(weights.values()))
        if self.max_net is not None and net > self.max_net:
            weights = {a: w * self.max_net / net for a, w in weights.items()}
            flags.append("net_scaled")
        quantities = {a: self._sized(weights[a], self.equity, self.last[a]) for a in self.assets}
        return {"weights": weights, "quantities": quantities, "flags": flags}

    def _sized(self, weight, equity, price):
        """Quantity in whole lots, toward zero; None where there is no price yet."""
        if price is None:
            return None if weight else ZERO
        target, lot = weight * equity / price, self.c("lot")
        if lot:
            target = ((abs(target) / lot + LOT_NOISE).to_integral_value(ROUND_FLOOR) * lot).copy_sign(target)
        return target

    def _corporate(self, bar, orders):
        for a in self.assets:
            facts = bar.get(a, {})
            if facts.get("split") is not None and dec(facts["split"]) != 1:
                self.quantity[a] *= dec(facts["split"])
                for order in orders:
                    if order["quantities"][a] is not None:
                        order["quantities"][a] *= dec(facts["split"])
                if self.last[a] is not None:
                    self.last[a] /= dec(facts["split"])
                self.flags.append(f"split:{a}")
            if facts.get("dividend") is not None and dec(facts["dividend"]) != 0:
                self.dividends += self.quantity[a] * dec(facts["dividend"])
                self.cash += self.quantity[a] * dec(facts["dividend"])
                self.flags.append(f"dividend:{a}")

    def _finance(self, years):
        shorts = {a: -self.quantity[a] * self.last[a] for a in self.assets if self.quantity[a] < 0}
        free = self.cash - sum(shorts.values(), ZERO)
        rate = self.c("credit_rate") if free > 0 else self.c("debit_rate")
        lent = sum((value * self.cost("borrow_rate", a) for a, value in shorts.items()), ZERO)
        self.financing = free * rate * years - lent * years
        self.cash += self.financing

    def _delist(self, bar):
        for a in self.assets:
            if a in bar and bar[a].get("delist") is not None:
                self.cash += self.quantity[a] * dec(bar[a]["delist"])
                self.quantity[a] = ZERO
                self.gone.add(a)
                self.flags.append(f"delisted:{a}")

    def _trade(self, order, known, bar, prices, which):
        """Fill at ``prices`` (the ``which`` of ``bar``); sigma is that of the bar ``known``."""
        self.flags += order["flags"]
        equity, wanted = self.worth({a: p or ZERO for a, p in prices.items()}), []
        for a in self.assets:
            weight, target = order["weights"][a], order["quantities"][a]
            unknown = target is None  # it had no price yet when the order was decided
            if self.sizing == "fill" and self.lag and prices[a]:
                target = self._sized(weight, equity, prices[a])
            elif unknown:
                target = weight
            elif self.lag == 1:  # in whole lots of what is traded at the fill
                target = self._sized(weight, self.equity, self.last[a])
            if abs(target - self.quantity[a]) > ORDER_NOISE * abs(self.quantity[a]):
                wanted.append((a, target - self.quantity[a], unknown))
        wanted.sort(key=lambda item: item[1] > 0)
        for a, size, unknown in wanted:
            self._fill(a, size, known, bar, which, unknown)

    def _fill(self, a, order, known, bar, which, unknown):
        facts = bar.get(a, {})
        trades = self._has(bar, a) and a not in self.gone and not unknown and not facts.get("halted")
        volume = dec(facts.get("volume") or 0) if trades else ZERO
        size = abs(order) if volume > 0 else ZERO
        part, lot = self.cost("participation", a), self.c("lot")
        if part is not None and volume > 0 and size > part * volume:
            size = part * volume
            if lot:
                size = (size / lot).to_integral_value(ROUND_FLOOR) * lot
        if size == 0:
            self.flags.append(f"no_fill:{a}")
            return
        if size < abs(order):
            self.flags.append(f"partial:{a}")
        side = 1 if order > 0 else -1
        start = dec(facts[which])
        sigma = known[a].get("sigma")
        impact = self.cost("impact_coef", a) * dec(sigma or 0) * (size / volume).sqrt()
        if sigma is None and self.cost("impact_coef", a):
            self.flags.append(f"no_sigma:{a}")
        spread = self.cost("half_spread", a) + self.cost("slippage", a)
        price = start * (1 + side * (spread + impact))
        fee = max(self.cost("min_fee", a), self.cost("per_share", a) * size)
        fee += self.cost("bps", a) * Decimal("1e-4") * abs(size * price)
        self.cash -= side * size * price + fee
        self.quantity[a] += side * size
        self.fees += fee
        self.spread += size * start * spread
        self.impact += size * start * impact
        self.fills.append({"asset": a, "qty": side * size, "price": price, "commission": fee})
