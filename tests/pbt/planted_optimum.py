"""Whether selection follows a planted optimum: a population against random search, at equal steps.

    python tests/pbt/planted_optimum.py --seeds 10 --members 8 --generations 100

Both have the same members with the same first hyperparameters, drawn from the space; in random search they
stay. Decisions and mutations are the real ones (``decide``, ``explore``), with the defaults of ``PbtConfig``;
members go in step. What counts in the end is the true skill of the member whose noisy scores are the best. No
files, no torch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from hpcrl.config.pbt import PbtConfig
from hpcrl.pbt.mutate import Values, draw, explore, start, stream
from hpcrl.pbt.select import Seen, decide

WINDOWS = 20
NOISE = 1.0
"""Standard deviation of a window's score, the gain of a generation with the best values being 1."""
SAME = 0.5
"""Of it, the part that a window does to all members alike."""

Skill = np.ndarray
"""What training has come to; copied with the weights."""


@dataclass(frozen=True)
class Toy:
    name: str
    begin: Callable[[], Skill]
    train: Callable[[Skill, Values, float], Skill]
    """One generation, at that part of the run (0 to 1)."""
    score: Callable[[Skill], float]
    """The more the better; in generations of best training."""


def _near(values: Values, key: str, best: float, width: float, one_minus: bool = False) -> float:
    """1 at the best value (a base-10 logarithm), falling off over ``width`` decades."""
    value = 1 - values[key] if one_minus else values[key]
    return math.exp(-(((math.log10(value) - best) / width) ** 2))


def _drift(at: float) -> float:
    """Log10 of the best learning rate, which falls from 2e-3 to 2e-5."""
    return math.log10(2e-3) - 2 * at


def _add(gain: Callable[[Values, float], float]) -> Callable[[Skill, Values, float], Skill]:
    return lambda skill, values, at: skill + gain(values, at)


def _three_keys(values: Values, at: float) -> float:
    lr, gamma = _near(values, "learn.lr", _drift(at), 0.5), _near(values, "learn.gamma", -2.3, 0.7, True)
    return lr * gamma * math.exp(-(((values["learn.clip_param"] - 0.15) / 0.15) ** 2))


CURVATURES = np.array([1.0, 0.05, 0.003])
STEPS = 20
"""Of gradient descent in a generation."""


def _descend(error: Skill, values: Values, at: float) -> Skill:
    """Expected squared error of SGD in a noisy quadratic bowl (Wu et al. 2018); lr x 500 is its step."""
    step = 500 * values["learn.lr"] * CURVATURES
    for _ in range(STEPS):
        error = (1 - step) ** 2 * error + step**2 * 1e-2
    return error


def _depth(error: Skill) -> float:
    """Of the loss, in powers of ten; a tenth of one counts like a generation."""
    return -10 * math.log10(float(CURVATURES @ error))


def _zero() -> Skill:
    return np.zeros(())


TOYS = {
    toy.name: toy
    for toy in (
        Toy("falling", _zero, _add(lambda v, at: _near(v, "learn.lr", _drift(at), 0.5)), float),
        Toy("three keys", _zero, _add(_three_keys), float),
        Toy(
            "swinging",
            _zero,
            _add(lambda v, at: _near(v, "learn.lr", -3.6 + 0.8 * math.sin(9 * at), 0.5)),
            float,
        ),
        Toy("fixed", _zero, _add(lambda v, at: _near(v, "learn.lr", -3.6, 0.5)), float),
        Toy("bowl", lambda: np.ones(3), _descend, _depth),
    )
}


def final_skill(toy: Toy, pbt: PbtConfig, seed: int, generations: int, select: bool) -> float:
    """True skill of the member that looks best in the end."""
    members = range(pbt.members)
    chance = np.random.default_rng([seed, 1])
    own = {key: draw(bounds, chance.random()) for key, bounds in pbt.space.items()}
    values = [start(own, pbt, seed, m) for m in members]
    skills = [toy.begin() for _ in members]
    for generation in range(1, generations + 1):
        at = (generation - 1) / generations
        skills = [toy.train(skill, v, at) for skill, v in zip(skills, values, strict=True)]
        alike = SAME * NOISE * chance.standard_normal(WINDOWS)
        seen = [_seen(m, generation, toy.score(skills[m]) + alike, chance) for m in members]
        if select and generation < generations:
            skills, values = _turn(seen, skills, values, pbt, seed)
    best = max(seen, key=lambda one: fmean(one.scores))
    return toy.score(skills[best.member])


def _seen(member: int, generation: int, level: np.ndarray, chance: np.random.Generator) -> Seen:
    own = math.sqrt(1 - SAME**2) * NOISE
    return Seen(member, generation, "", tuple((level + own * chance.standard_normal(WINDOWS)).tolist()), True)


def _turn(
    seen: list[Seen], skills: list[Skill], values: list[Values], pbt: PbtConfig, seed: int
) -> tuple[list[Skill], list[Values]]:
    """All members decide on the same records, as they do where none is slower than the others."""
    skills_after, values_after = list(skills), list(values)
    for one in seen:
        rng = stream(seed, one.member, one.generation)
        donor = decide(one, [other for other in seen if other is not one], pbt, rng).donor
        if donor is not None:
            skills_after[one.member] = skills[donor.member]
            values_after[one.member] = explore(values[donor.member], pbt, rng)
    return skills_after, values_after


def best_fixed(toy: Toy, pbt: PbtConfig, generations: int) -> float:
    """What the best of 100 learning rates comes to if it never changes, the other keys at their middle."""
    middle = {key: draw(bounds, 0.5) for key, bounds in pbt.space.items()}
    found = []
    for u in np.linspace(0, 1, 100):
        values, skill = middle | {"learn.lr": draw(pbt.space["learn.lr"], float(u))}, toy.begin()
        for generation in range(generations):
            skill = toy.train(skill, values, generation / generations)
        found.append(toy.score(skill))
    return max(found)


@dataclass(frozen=True)
class Comparison:
    """Final skills by seed."""

    population: list[float]
    search: list[float]

    @property
    def differences(self) -> list[float]:
        return sorted(a - b for a, b in zip(self.population, self.search, strict=True))

    @property
    def median(self) -> float:
        return median(self.differences)

    @property
    def interval(self) -> tuple[float, float]:
        """Of the median, by order statistics: with 10 seeds the 2nd to the 9th, which covers 97.9 %."""
        return self.differences[1], self.differences[-2]

    @property
    def wins(self) -> int:
        return sum(difference > 0 for difference in self.differences)


def compare(toy: Toy, pbt: PbtConfig, generations: int, seeds: range) -> Comparison:
    return Comparison(*([final_skill(toy, pbt, s, generations, on) for s in seeds] for on in (True, False)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--generations", type=int, default=100)
    parser.add_argument("--explore", choices=("perturb", "resample"), default="perturb")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.8, 1.2])
    given = parser.parse_args()
    pbt = PbtConfig(members=given.members, explore=given.explore, factors=tuple(given.factors))
    print("| objective | population | random search | best fixed rate | difference | interval | won |")
    print("|---|---|---|---|---|---|---|")
    for toy in TOYS.values():
        found = compare(toy, pbt, given.generations, range(given.seeds))
        low, high = found.interval
        print(
            f"| {toy.name} | {median(found.population):.1f} | {median(found.search):.1f} "
            f"| {best_fixed(toy, pbt, given.generations):.1f} | {found.median:+.1f} "
            f"| {low:+.1f} to {high:+.1f} | {found.wins} of {given.seeds} |"
        )


if __name__ == "__main__":
    main()
