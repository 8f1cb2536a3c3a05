"""Random replay cases over every option of the contract."""

import random


def random_case(seed: int, bars: int = 24) -> dict:
    rng = random.Random(seed)
    assets = ["A", "B", "C"][: rng.choice([1, 1, 2, 3])]
    pick = rng.choice
    config = {
        "initial_cash": pick(["100000", "5000", 1234567.89]),
        "sizing": pick(["decision", "fill"]),
        "lot": pick(["0", "0", "1", "0.01", "10"]),
        "half_spread": pick(["0", "0.0001", "0.002"]),
        "slippage": pick(["0", "0.0003"]),
        "impact_coef": pick(["0", "1.0", "0.5"]),
        "participation": pick([None, None, "0.05", "0.001"]),
        "per_share": pick(["0", "0.0035"]),
        "min_fee": pick(["0", "0.35"]),
        "bps": pick(["0", "2", "10"]),
        "credit_rate": pick(["0", "0.04"]),
        "debit_rate": pick(["0", "0.07"]),
        "borrow_rate": pick(["0", "0.03"]),
        "max_leverage": pick(["1", "2", "4"]),
        "maintenance": pick(["0", "0.25", "0.4"]),
        "intrabar": pick([True, False]),
        "reward_floor": "1e-4",
        "fill_lag": pick([0, 1, 1, 2, 2]),
        "max_net": pick([None, None, "0.5", "1.2"]),
    }
    if rng.random() < 0.5:
        config["symbols"] = {a: _own_costs(rng) for a in rng.sample(assets, rng.randint(1, len(assets)))}
    calm = pick([0.002, 0.02, 0.15])
    price = {a: rng.uniform(5, 300) for a in assets}
    gone: dict[str, bool] = dict.fromkeys(assets, False)
    late = {a: rng.choice([0, 0, 0, 0, 1, 4]) for a in assets}
    ts, rows = 1_650_000_000, []
    for b in range(bars):
        ts += pick([300, 300, 300, 63_000, 235_800])
        row: dict = {"ts": ts}
        for a in assets:
            row[a] = _random_bar(rng, price, gone, a, b - late[a], calm)
        rows.append(row)
    weights: dict[str, str] = dict.fromkeys(assets, "0")
    actions = []
    for _ in range(bars - 1):
        if rng.random() < 0.6:
            weights = {a: pick(["0", "1", "-1", str(round(rng.uniform(-2.5, 2.5), 3))]) for a in assets}
        actions.append(dict(weights))
    return {"name": f"random {seed}", "config": config, "assets": assets, "bars": rows, "actions": actions}


def _own_costs(rng):
    every = {
        "half_spread": ["0", "0.001"],
        "slippage": ["0", "0.0007"],
        "impact_coef": ["0", "2"],
        "participation": [None, "0.02", "1"],
        "per_share": ["0", "0.01"],
        "min_fee": ["0", "2"],
        "bps": ["0", "30"],
        "borrow_rate": ["0", "0.5"],
    }
    return {key: rng.choice(every[key]) for key in rng.sample(sorted(every), rng.randint(0, len(every)))}


def _random_bar(rng, price, gone, a, b, calm):
    nothing = {"open": None, "high": None, "low": None, "close": None, "volume": 0}
    if gone[a] or b < 0:
        return nothing
    extra = {}
    if b and rng.random() < 0.03:
        extra["split"] = rng.choice(["2", "0.5", "1.5"])
        price[a] /= float(extra["split"])
    if b and rng.random() < 0.03:
        extra["dividend"] = str(round(price[a] * 0.01, 4))
    if b > 3 and rng.random() < 0.01:
        gone[a] = True
        return nothing | {"delist": str(round(price[a] * rng.uniform(0, 1), 4))} | extra
    if b and rng.random() < 0.1:
        return nothing | extra | {"sigma": "0.002"}
    start = price[a] * (1 + rng.gauss(0, calm)) if rng.random() < 0.95 else price[a] * rng.uniform(0.6, 1.6)
    start = max(start, 0.01)
    close = max(start * (1 + rng.gauss(0, calm)), 0.01)
    price[a] = close
    high = max(start, close) * (1 + abs(rng.gauss(0, calm)))
    low = min(start, close) * max(0.05, 1 - abs(rng.gauss(0, calm)))
    if rng.random() < 0.04:
        extra["halted"] = True
    volume = rng.choice([0, 100_000, 100_000, rng.randint(1, 500), rng.randint(1000, 90_000)])
    digits = [f"{x:.6f}" for x in (start, high, low, close)]
    bar = dict(zip(("open", "high", "low", "close"), digits, strict=True))
    return bar | {"volume": volume, "sigma": "0.002"} | extra
