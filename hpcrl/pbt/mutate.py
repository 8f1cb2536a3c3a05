"""Hyperparameters: where a member begins, and what becomes of a donor's. Pure functions of a generator.

Each moves on its own scale (``config/pbt.Hyperparameter``): lr is multiplied, gamma moves through 1 - gamma
(its horizon 1 / (1 - gamma) is what matters), clip_param linearly. Nothing leaves its bounds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpcrl.config.pbt import Hyperparameter, PbtConfig
from hpcrl.config.root import Config, flatten
from hpcrl.types import HpcrlError

Values = dict[str, float]
"""Dotted key -> value."""
WHOLE = ("learn.ppo_epochs",)
START, TURN = 0, 1
"""Purposes of a random stream."""


def stream(seed: int, member: int, generation: int, purpose: int = TURN) -> np.random.Generator:
    """The only source of chance in a population. Of its methods ``random`` alone is used: it is the bits."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, member, generation, purpose])))


def seed_of(seed: int, member: int) -> int:
    """train.seed of a member; the first has the population's own."""
    return seed if member == 0 else int(np.random.SeedSequence([seed, member]).generate_state(1)[0] >> 1)


def values_of(config: Config) -> Values:
    """The config's own values of the space's keys.

    HpcrlError: one is null, or outside its bounds, or the weight of a reward that is switched off.
    """
    flat = flatten(config.model_dump(mode="json"))
    found = {}
    for key, bounds in config.pbt.space.items():
        value = flat[key]
        if not isinstance(value, int | float):
            raise HpcrlError(f"pbt.space: {key} = {value!r} has no value to begin with; give it a number")
        if key in _weights() and value == 0:
            raise HpcrlError(f"pbt.space: {key} = 0: that reward is switched off and cannot join later")
        if not bounds.low <= value <= bounds.high:
            raise HpcrlError(
                f"pbt.space: {key} = {value:g} is outside its bounds, {bounds.low:g} to {bounds.high:g}"
            )
        if key in _weights() and bounds.low <= 0 <= bounds.high:
            raise HpcrlError(f"pbt.space: {key}: its bounds must leave 0 out, which would switch it off")
        found[key] = value
    return found


def _weights() -> tuple[str, ...]:
    from hpcrl.config.env import RewardWeights

    return tuple(f"env.rewards.{name}" for name in RewardWeights.model_fields)


def start(own: Values, pbt: PbtConfig, seed: int, member: int) -> Values:
    """Where a member begins: the first with the config's own values, the others spread over the space.

    A Latin hypercube (McKay et al. 1979): each key's scale is cut into as many parts as there are others, and
    each part is somebody's, so that few members cover it too.
    """
    if member == 0 or not pbt.spread_start:
        return dict(own)
    others = pbt.members - 1
    shuffling, within = stream(seed, 0, 0, START), stream(seed, member, 0, START)
    found = {}
    for key, bounds in pbt.space.items():
        lots = [shuffling.random() for _ in range(others)]
        part = sorted(range(others), key=lots.__getitem__).index(member - 1)
        found[key] = fit(key, draw(bounds, (part + within.random()) / others), bounds)
    return found


def explore(donor: Mapping[str, float], pbt: PbtConfig, rng: np.random.Generator) -> Values:
    """A donor's hyperparameters, each moved a little or drawn anew.

    Always two numbers of ``rng`` for a key, so that what happens to one says nothing about the next.
    """
    found = {}
    for key, bounds in pbt.space.items():
        anew, u = rng.random(), rng.random()
        if pbt.explore == "resample" and anew < pbt.resample_probability:
            value = draw(bounds, u)
        else:
            value = perturb(key, donor[key], bounds, pbt.factors[int(u * len(pbt.factors))])
        found[key] = fit(key, value, bounds)
    return found


def draw(bounds: Hyperparameter, u: float) -> float:
    """``u`` in [0, 1) -> a value within the bounds, uniform on the scale."""
    low, high = bounds.low, bounds.high
    if bounds.scale == "log":
        return low * (high / low) ** u
    if bounds.scale == "one_minus":
        return 1 - (1 - high) * ((1 - low) / (1 - high)) ** u
    return low + (high - low) * u


def perturb(key: str, value: float, bounds: Hyperparameter, factor: float) -> float:
    if bounds.scale == "one_minus":
        return 1 - (1 - value) * factor
    moved = value * factor
    if key in WHOLE and round(moved) == value and factor != 1:
        moved = value + (1 if factor > 1 else -1)
    return moved


def fit(key: str, value: float, bounds: Hyperparameter) -> float:
    """The nearest value within the bounds that the key can have."""
    fitted = min(max(value, bounds.low), bounds.high)
    if key in WHOLE:
        return int(min(max(round(fitted), np.ceil(bounds.low)), np.floor(bounds.high)))
    return fitted
