"""Who is replaced by whom: truncation selection, ranked on the even windows and tested on the odd ones.

Ranking and testing on the same windows would make members that differ by chance alone exploit in 34 (of 4
members) to 47 (of 16) of 100 turns (simulated): the best of several noisy means looks better than it is, and
the worst worse. On split halves it is the test's level. A pure function of its arguments, so that anybody can
compute it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from hpcrl.config.pbt import PbtConfig


@dataclass(frozen=True)
class Seen:
    """What a decision knows of a record."""

    member: int
    generation: int
    sha256: str
    """Of the record's file."""
    scores: tuple[float, ...]
    """One per validation window."""
    usable: bool
    """Its snapshot is there: it may be a donor."""

    @property
    def rank_score(self) -> float:
        return fmean(self.scores[::2])

    @property
    def test_scores(self) -> tuple[float, ...]:
        return self.scores[1::2]


@dataclass(frozen=True)
class Decision:
    donor: Seen | None
    """None: keep."""
    reason: str
    p: float | None = None
    """Of the test, where there was one."""

    @property
    def outcome(self) -> str:
        return "keep" if self.donor is None else "exploit"


def decide(own: Seen, others: Sequence[Seen], pbt: PbtConfig, rng: np.random.Generator) -> Decision:
    """Keep, or take over a donor. ``others``: at most one record a member, none of it newer than ``own`` is.

    Draws one number of ``rng``, whatever comes of it.
    """
    u = rng.random()
    ranked = sorted([own, *others], key=lambda seen: (seen.rank_score, -seen.member))
    n = len(ranked)
    if n < 2:
        return Decision(None, "no other member has a record yet")
    k = max(1, int(n * pbt.quantile))
    place = n - ranked.index(own)
    if own not in ranked[:k]:
        return Decision(None, f"place {place} of {n}")
    donors = [seen for seen in ranked[-k:] if seen.usable]
    if not donors:
        return Decision(None, f"place {place} of {n}, but no snapshot of the best is left")
    donor = donors[int(u * len(donors))]
    p = p_value(donor.test_scores, own.test_scores)
    said = f"place {place} of {n}, member {donor.member} better with p = {p:.3g}"
    if p >= pbt.level:
        return Decision(None, f"{said}: not shown at the level {pbt.level:g}", p)
    return Decision(donor, said, p)


def p_value(better: Sequence[float], worse: Sequence[float]) -> float:
    """Of a one-sided paired t-test (Student 1908) that ``better`` is better."""
    from scipy.stats import ttest_rel

    difference = np.subtract(better, worse)
    if np.ptp(difference) == 0:  # no spread: the sign is all there is
        return 0.0 if difference[0] > 0 else 1.0
    return float(ttest_rel(better, worse, alternative="greater").pvalue)
