"""Whether the reward of training still rises, by blocks of epochs and against their noise.

Numbers here are guessed, and tried on runs of the sample, of planted markets and of a random walk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

FIRST, BLOCK = 10, 25
"""Epochs whose rewards are compared as one: the first (few, as some runs learn at once), and all others."""
PATIENCE, PLATEAU = 3, 8
"""Blocks without a rise before a line: where there never was one, and after one."""
BEYOND = 2.0
"""Standard errors of a difference that is more than noise."""


@dataclass(frozen=True)
class Block:
    """Some epochs, the last of which is ``epoch``; ``variance``: of the mean of their rewards."""

    epoch: int
    mean: float
    variance: float


class Progress:
    """Blocks without a rise are counted from the last one that rose; a line comes after ``PATIENCE`` of them
    (``PLATEAU`` after a rise), then each time that their number has doubled.
    """

    def __init__(self) -> None:
        self.rewards: list[float] = []
        """Of the block that is not yet full."""
        self.best: Block | None = None
        self.rises = self.waited = 0

    def add(self, epoch: int, reward: float) -> str:
        """What to say after ``epoch``; "" while the reward rises, or it is too early to say."""
        if not math.isfinite(reward):
            return ""
        self.rewards.append(reward)
        best = self.best
        if len(self.rewards) < (FIRST if best is None else BLOCK):
            return ""
        block, self.rewards = _block(epoch, self.rewards), []
        if best is None or block.mean - best.mean > BEYOND * math.sqrt(block.variance + best.variance):
            self.rises += best is not None
            self.best, self.waited = block, 0
            return ""
        self.waited += 1
        return _words(block, best, self.rises) if self._due() else ""

    def _due(self) -> bool:
        return doubled(self.waited, PLATEAU if self.rises else PATIENCE)


def doubled(count: int, first: int) -> bool:
    """Whether ``count`` is ``first``, twice that, four times that ...: what lasts is said ever less often."""
    times, rest = divmod(count, first)
    return times > 0 and not rest and not times & (times - 1)


def _block(epoch: int, rewards: list[float]) -> Block:
    # Of neighbours' usual difference, as of normal noise: neither a trend nor a jump is noise.
    deviation = median(abs(after - before) for before, after in pairwise(rewards)) / 0.954
    return Block(epoch, fmean(rewards), deviation**2 / len(rewards))


def _words(now: Block, best: Block, rises: int) -> str:
    seen = f"no progress: mean reward {now.mean:.3g} in the last {BLOCK} epochs, {best.mean:.3g} in "
    if not rises:
        return (
            f"{seen}the first {FIRST}: no rise beyond noise; try another learn.lr or more steps per update "
            "(env.envs_per_gpu); a run without costs (env.costs) tells whether they eat what can be learnt"
        )
    return (
        f"{seen}those up to epoch {best.epoch}; stop if that is enough, else try a lower learn.lr, or more "
        "exploration (learn.entropy_coef)"
    )
