"""Selection: who may be replaced, by whom, and how often members that are alike are replaced by mistake."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from hpcrl.config.pbt import PbtConfig
from hpcrl.pbt.select import Seen, decide

PBT = PbtConfig()
EVEN, ODD = slice(0, None, 2), slice(1, None, 2)
NOISE = np.random.default_rng(8).normal(0, 1, 16)


def seen(member: int, even: float, odd: float, usable: bool = True, noise: float = 0.1) -> Seen:
    """16 windows about these means; each member's differ a little."""
    scores = noise * np.roll(NOISE, member)
    scores[EVEN] += even - scores[EVEN].mean()
    scores[ODD] += odd - scores[ODD].mean()
    return Seen(member, 1, f"{member:064d}", tuple(scores.tolist()), usable)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def outcomes(everybody: list[Seen], pbt: PbtConfig) -> tuple[set[int], set[int]]:
    """(members that are put to the test, donors that it is with), over many draws."""
    tested, donors = set(), set()
    for own in everybody:
        others = [other for other in everybody if other is not own]
        for seed in range(60):
            decision = decide(own, others, pbt, rng(seed))
            if decision.p is not None:
                tested.add(own.member)
            if decision.donor is not None:
                donors.add(decision.donor.member)
    return tested, donors


def test_a_worse_member_takes_over_a_better_one():
    decision = decide(seen(0, 0, 0), [seen(1, 1, 1)], PBT, rng())
    assert decision.outcome == "exploit" and decision.donor is not None and decision.donor.member == 1
    assert decision.reason.startswith("place 2 of 2, member 1 better with p = ")
    assert decide(seen(1, 1, 1), [seen(0, 0, 0)], PBT, rng()).outcome == "keep"


def test_ranks_come_from_the_even_windows_alone():
    own, other = seen(0, even=1, odd=-9), seen(1, even=0, odd=9)
    decision = decide(own, [other], PBT, rng())
    assert (decision.outcome, decision.p, decision.reason) == ("keep", None, "place 1 of 2")


def test_the_test_sees_the_odd_windows_alone():
    own, better_by_even = seen(0, even=-9, odd=0), seen(1, even=9, odd=0)
    decision = decide(own, [better_by_even], PBT, rng())
    assert decision.outcome == "keep" and decision.p is not None and decision.p > PBT.level
    assert decision.reason.endswith("not shown at the level 0.05")
    worse_by_odd = decide(seen(0, even=-9, odd=1), [seen(1, even=9, odd=0)], PBT, rng())
    assert worse_by_odd.outcome == "keep" and worse_by_odd.p is not None and worse_by_odd.p > 0.95


def test_p_is_that_of_students_paired_test_one_sided():
    own, other = seen(0, even=-1, odd=0), seen(1, even=1, odd=0.03)
    difference = np.array(other.scores[ODD]) - np.array(own.scores[ODD])
    t = difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference)))
    by_hand = stats.t.sf(t, len(difference) - 1)
    assert 0.05 < by_hand < 0.5
    assert decide(own, [other], PBT, rng()).p == pytest.approx(by_hand, rel=1e-9)


def test_the_level_is_the_configs():
    own, other = seen(0, -1, 0), seen(1, 1, 0.03)
    p = decide(own, [other], PBT, rng()).p
    assert p is not None
    for level, outcome in ((p * 0.99, "keep"), (p, "keep"), (p * 1.01, "exploit")):
        assert decide(own, [other], PbtConfig(level=level), rng()).outcome == outcome


def test_differences_without_spread_are_decided_by_their_sign():
    flat = {m: Seen(m, 1, "", (float(m),) * 16, True) for m in (0, 1)}
    assert decide(flat[0], [flat[1]], PBT, rng()).p == 0.0
    alike = Seen(1, 1, "", flat[0].scores, True)
    assert decide(alike, [flat[0]], PBT, rng()).p == 1.0


def test_of_equal_ranks_the_later_member_stands_below():
    alike = [Seen(m, 1, "", (0.0, 1.0) * 8, True) for m in range(4)]
    tested, donors = outcomes(alike, PBT)
    assert (tested, donors) == ({3}, set())
    assert decide(alike[3], alike[:3], PBT, rng()).reason.startswith("place 4 of 4, member 0 better")
    assert decide(alike[1], [alike[0], *alike[2:]], PBT, rng()).reason == "place 2 of 4"


COUNTS = {2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 2, 9: 2, 10: 2, 11: 2, 12: 3, 13: 3, 14: 3, 15: 3, 16: 4}


@pytest.mark.parametrize(("members", "count"), COUNTS.items())
def test_a_quarter_is_replaced_by_a_quarter_and_always_one_by_one(members, count):
    everybody = [seen(m, 10 * m, 10 * m) for m in range(members)]
    tested, donors = outcomes(everybody, PBT)
    assert tested == set(range(count))
    assert donors == set(range(members - count, members))


@pytest.mark.parametrize("members", range(2, 17))
def test_no_quantile_makes_a_member_a_donor_that_is_to_be_replaced(members):
    everybody = [seen(m, 10 * m, 10 * m) for m in range(members)]
    tested, donors = outcomes(everybody, PbtConfig(quantile=0.5))
    assert (tested, donors) == (set(range(members // 2)), set(range(members - members // 2, members)))


def test_members_without_a_snapshot_are_ranked_but_are_no_donors():
    everybody = [seen(m, 10 * m, 10 * m, usable=m != 7) for m in range(8)]
    assert outcomes(everybody, PBT) == ({0, 1}, {6})
    none_left = [seen(m, 10 * m, 10 * m, usable=m < 6) for m in range(8)]
    decision = decide(none_left[0], none_left[1:], PBT, rng())
    assert decision.outcome == "keep" and decision.p is None
    assert decision.reason == "place 8 of 8, but no snapshot of the best is left"


def test_a_member_that_is_alone_keeps():
    decision = decide(seen(0, 0, 0), [], PBT, rng())
    assert (decision.outcome, decision.reason) == ("keep", "no other member has a record yet")


def test_the_order_in_which_others_were_read_does_not_matter():
    own, *others = [seen(m, m, m) for m in range(9)]
    for seed in range(20):
        shuffled = [others[i] for i in np.random.default_rng(seed).permutation(len(others))]
        assert decide(own, shuffled, PBT, rng(seed)) == decide(own, others, PBT, rng(seed))


@pytest.mark.parametrize(
    ("own", "others"),
    [
        (seen(0, 0, 0), []),
        (seen(1, 1, 1), [seen(0, 0, 0)]),
        (seen(0, 0, 0), [seen(1, 1, 1)]),
        (seen(0, 0, 0), [seen(1, 1, 1, usable=False)]),
    ],
    ids=["alone", "not among the last", "exploit", "no donor"],
)
def test_a_decision_draws_one_number_whatever_comes_of_it(own, others):
    """What explore draws after it must not depend on what the other members did."""
    used, fresh = rng(3), rng(3)
    decide(own, others, PBT, used)
    fresh.random()
    assert used.bit_generator.state == fresh.bit_generator.state


TURNS = 2_000
"""In which a member is put to the test."""


def alike(generator: np.random.Generator, members: int, windows: int, common: float) -> list[Seen]:
    """Members of one distribution; ``common``: what a window does to all of them alike."""
    scores = generator.normal(0, 1, (members, windows)) + common * generator.normal(0, 1, windows)
    return [Seen(m, 1, "", tuple(row), True) for m, row in enumerate(scores.tolist())]


def rate_of_exploits(turns: Iterable[list[Seen]], number: int = TURNS) -> float:
    """Of member 0, over the turns in which it is put to the test; each turn is drawn anew."""
    generator, exploits, tested = rng(17), 0, 0
    for own, *others in turns:
        decision = decide(own, others, PBT, generator)
        if decision.p is not None:
            tested += 1
            exploits += decision.outcome == "exploit"
        if tested == number:
            return exploits / number
    raise AssertionError("too few turns")


@pytest.mark.slow
@pytest.mark.parametrize("common", [0.0, 3.0], ids=["independent windows", "windows good or bad for all"])
@pytest.mark.parametrize(("members", "windows"), [(4, 16), (8, 24)])
def test_members_that_are_alike_exploit_at_the_tests_level(members, windows, common, record_property):
    generator = np.random.default_rng([members, int(common)])
    rate = rate_of_exploits(alike(generator, members, windows, common) for _ in range(10 * TURNS))
    low, high = (count / TURNS for count in stats.binom.interval(0.99, TURNS, PBT.level))
    record_property(f"exploit rate, {members} members alike, common {common:g}", f"{rate:.4f}")
    assert low <= rate <= high


class BothOnAll(Seen):
    """Ranked and tested on the same windows."""

    @property
    def rank_score(self) -> float:
        return fmean(self.scores)

    @property
    def test_scores(self) -> tuple[float, ...]:
        return self.scores


@pytest.mark.slow
@pytest.mark.parametrize(("members", "windows"), [(8, 60), (16, 40)])
def test_on_the_same_windows_members_that_are_alike_would_exploit_in_40_to_49_of_100_turns(
    members, windows, record_property
):
    """Why the halves: in the windows by which they were ranked, the last by chance does look worse.

    Over 10,000 turns: 0.34 with 4 members, 0.41 to 0.43 with 8, 0.46 to 0.47 with 16.
    """
    generator = rng(members)
    turns = (
        [BothOnAll(seen.member, 1, "", seen.scores, True) for seen in alike(generator, members, windows, 0)]
        for _ in range(10 * TURNS)
    )
    rate = rate_of_exploits(turns)
    record_property(f"exploit rate on the same windows, {members} members alike", f"{rate:.4f}")
    assert 0.40 <= rate <= 0.49
