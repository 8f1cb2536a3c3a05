"""Population-based training: does the config suit one, and does a dry turn of made-up records pass?"""

from __future__ import annotations

from hpcrl.config.root import Config
from hpcrl.evaluate.windows import find_windows
from hpcrl.market.dataset import Market
from hpcrl.pbt.mutate import explore, start, stream, values_of
from hpcrl.pbt.population import check
from hpcrl.pbt.select import Seen, decide
from hpcrl.verify.finding import Trouble


def check_population(config: Config, market: Market) -> str:
    windows = len(find_windows(market, config))
    check(config, windows)
    copied = dry_turn(config, windows)
    pbt = config.pbt
    return (
        f"{pbt.members} members, a turn every {pbt.interval} epochs, {windows} validation windows, keys "
        f"{', '.join(pbt.space)}; a dry turn of made-up scores copies {copied}"
    )


def dry_turn(config: Config, windows: int) -> int:
    """Every member decides once, on scores by which each is worse than the one before it; how many copy.

    Trouble where nobody copies the best, or a copy leaves its bounds.
    """
    pbt, seed = config.pbt, config.train.seed
    own = values_of(config)
    values = [start(own, pbt, seed, member) for member in range(pbt.members)]
    noise = [1e-6 * (window % 3) for window in range(windows)]
    seen = [
        Seen(member, 1, "0" * 64, tuple(-float(member) + jitter for jitter in noise), True)
        for member in range(pbt.members)
    ]
    copied = 0
    for member, record in enumerate(seen):
        rng = stream(seed, member, 1)
        decision = decide(record, [each for each in seen if each is not record], pbt, rng)
        if decision.donor is None:
            continue
        copied += 1
        after = explore(values[decision.donor.member], pbt, rng)
        for key, bounds in pbt.space.items():
            if not bounds.low <= after[key] <= bounds.high:
                raise Trouble(
                    f"{key} = {after[key]:g} leaves its bounds {bounds.low:g} to {bounds.high:g}", "report it"
                )
    if not copied:
        raise Trouble("in a dry turn with clear differences nobody copies the best", "report it")
    return copied
