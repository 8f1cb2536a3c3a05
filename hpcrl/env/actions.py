"""From a Gymnasium agent's action to target weights. What is not an action is refused, never clamped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from hpcrl.env.settings import Settings
from hpcrl.types import HpcrlError


class Actions:
    """The action space of one account of ``n_assets`` (A), and its reading.

    One account on one symbol chooses by a Discrete, one over all assets by a MultiDiscrete; continuous
    actions are a Box of [-1, 1] per asset, linear between weight_low and weight_high.
    """

    def __init__(self, settings: Settings, n_assets: int) -> None:
        self._discrete = settings.action == "discrete"
        self._positions_P = np.array(settings.positions)
        self._middle = (settings.weight_high + settings.weight_low) / 2
        self._half = (settings.weight_high - settings.weight_low) / 2
        self.space: spaces.Space
        if not self._discrete:
            self.space = spaces.Box(-1.0, 1.0, (n_assets,), np.float32)
        elif settings.env.assets == "single":
            self.space = spaces.Discrete(len(self._positions_P))
        else:
            self.space = spaces.MultiDiscrete([len(self._positions_P)] * n_assets)

    @property
    def needed(self) -> str:
        if self._discrete:
            return f"a whole number from 0 to {len(self._positions_P) - 1} is needed, an index into positions"
        return "a finite number from -1 to 1 is needed"

    def weights(self, action: Any, shape: tuple[int, ...], place: Callable[[int, int], str]) -> np.ndarray:
        """Target weights, float64 of ``shape`` [N, A].

        ``action``: one per environment, batched; for N = 1 that is a leading axis of 1. ``place`` names
        environment n's asset a. HpcrlError for the wrong shape, the wrong kind of number, or its range.
        """
        wanted = (shape[0], *(self.space.shape or ()))
        try:
            array = np.asarray(action)
        except (TypeError, ValueError, RuntimeError) as error:
            raise HpcrlError(f"{place(0, 0)}: the action {action!r:.80} is no array: {error}") from None
        if array.dtype.kind not in ("iu" if self._discrete else "f"):
            raise HpcrlError(
                f"{place(0, 0)}: the action {action!r:.80} is of dtype {array.dtype}; {self.needed}"
            )
        if array.shape != wanted:
            raise HpcrlError(
                f"{place(0, 0)}: the actions of {wanted[0]} environments have shape {array.shape}; {wanted} "
                f"is needed, {wanted[1:]} for each"
            )
        array_NA = array.reshape(shape)
        low, high = (0, len(self._positions_P) - 1) if self._discrete else (-1, 1)
        good_NA = (array_NA >= low) & (array_NA <= high)  # not for NaN either
        if not good_NA.all():
            n, a = (int(index) for index in np.argwhere(~good_NA)[0])
            raise HpcrlError(f"{place(n, a)}: the action is {array_NA[n, a]}; {self.needed}")
        if self._discrete:
            return self._positions_P[array_NA]
        return self._middle + self._half * array_NA.astype(np.float64)
