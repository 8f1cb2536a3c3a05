"""Random replay cases over every option of the contract."""

import random

OPTIONS: dict[str, list] = {
    "initial_cash": ["100000", "5000", 1234567.89],
    "fill_lag": [1, 0, 2],
    "sizing": ["decision", "fill"],
    "lot": ["0", "0", "1", "0.01", "10"],
    "half_spread": ["0", "0.0001", "0.002"],
    "slippage": ["0", "0.0003"],
    "impact_coef": ["0", "1.0", "0.5"],
    "participation": [None, None, "0.05", "0.001"],
    "per_share": ["0", "0.0035"],
    "min_fee": ["0", "0.35"],
    "bps": ["0", "2", "10"],
    "credit_rate": ["0", "0.04"],
    "debit_rate": ["0", "0.07"],
    "borrow_rate": ["0", "0.03"],
    "max_leverage": ["1", "2", "4"],
    "max_net": [None, None, "0.5", "1.2"],
    "maintenance": ["0", "0.25", "0.4"],
    "intrabar": [True, False],
    "reward_floor": ["1e-4", "0.01"],
}
OWN_COSTS: dict[str, list] = {
    "half_spread": ["0", "0.001"],
    "slippage": ["0", "0.0007"],
    "impact_coef": ["0", "2"],
    "participation": [None, "0.02", "1"],
    "per_share": ["0", "0.01"],
    "min_fee": ["0", "2"],
    "bps": ["0", "30"],
    "borrow_rate": ["0", "0.5"],
}
ASSETS = ["A", "B", "C"]


def random_config(seed: int) -> tuple[dict, list[str]]:
    """Options and assets."""
    rng = random.Random(seed)
    config = {key: rng.choice(choices) for key, choices in OPTIONS.items()}
    assets = ASSETS[: rng.choice([1, 1, 2, 3])]
    if rng.random() < 0.5:
        config["symbols"] = {
            asset: {
                key: rng.choice(OWN_COSTS[key]) for key in rng.sample(sorted(OWN_COSTS), rng.randint(0, 8))
            }
            for asset in rng.sample(assets, rng.randint(1, len(assets)))
        }
    return config, assets


def random_case(
    seed: int, bars: int = 24, options: tuple[dict, list[str]] | None = None, calm: float | None = None
) -> dict:
    """Bars and actions by ``seed``; options and volatility of a bar too, unless they are given."""
    config, assets = options or random_config(seed)
    rng = random.Random(f"bars {seed}")
    pick = rng.choice
    drawn = pick([0.002, 0.02, 0.15, 0.3])
    calm = drawn if calm is None else calm
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
    return {
        "name": f"random {seed}",
        "config": dict(config),
        "assets": assets,
        "bars": rows,
        "actions": actions,
    }


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
    jump = min(0.5, 20 * calm) if rng.random() < 0.05 else 0.0
    start = price[a] * (1 + rng.gauss(0, calm) + jump * rng.uniform(-0.8, 1.2))
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
    if b > 18 or rng.random() > 0.05:  # from 20 returns on, replay measures sigma itself
        extra["sigma"] = rng.choice(["0.002", "0.01"])
    return bar | {"volume": volume} | extra
