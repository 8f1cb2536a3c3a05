"""A population from a config, or one to go on with, and the places that this machine has for its members.

Everything that can be known to be wrong is told before a folder is made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcrl.config.load import load_config, overridden
from hpcrl.config.root import Config, changed_live
from hpcrl.pbt.population import Population
from hpcrl.storage.atomic import check_output
from hpcrl.storage.attempts import read_attempts
from hpcrl.types import HpcrlError

SLICE = 2
"""Generations after which a member makes room, where there are fewer places than members."""


@dataclass(frozen=True)
class PopulationRequest:
    """The options of ``hpcrl pbt run``."""

    config: Path | None = None
    overrides: tuple[str, ...] = ()
    population: Path | None = None
    members: int | None = None
    ranks: int | None = None

    @property
    def sets(self) -> tuple[str, ...]:
        """``overrides``, and --members as one of them."""
        return self.overrides + (() if self.members is None else (f"pbt.members={self.members}",))


def configured(request: PopulationRequest) -> Config:
    """Of a new population: checked, with absolute paths and the ranks of each member."""
    if request.config is None:
        raise HpcrlError(
            "a population needs --config FILE (for example yaml/pbt.yaml), or --population to go on with one"
        )
    config = load_config(request.config, request.sets, ranks=request.ranks)
    said = request.ranks or overridden(request.overrides, "train.world_size") or os.environ.get("GPU_COUNT")
    config = config if said else _with(config, "train", world_size=1)
    if config.train.training_mode == "single" and config.train.world_size > 1:
        raise HpcrlError(
            f"train.training_mode = single (TRAINING_MODE), but each member is to have "
            f"{config.train.world_size} ranks; use distributed, or --ranks 1"
        )
    return _absolute(config)


def new_population(config: Config, places: int) -> Population:
    """Make the folder of ``config``'s population. ``places``: members that can run at the same time.

    HpcrlError, with nothing made: data that are missing, too short, or hold too few validation windows.
    """
    from hpcrl.evaluate.windows import find_windows
    from hpcrl.market.load import load_market

    check_output(Path(config.pbt.dir) / "pbt")
    market = load_market(config.market)
    market.require("train", config.episode_steps, config.env.fill_lag)
    if places < config.pbt.members and config.pbt.slice is None:
        config = _with(config, "pbt", slice=SLICE)
    return Population.create(config, market.sha256, len(find_windows(market, config)))


def known_population(request: PopulationRequest) -> tuple[Population, tuple[str, ...]]:
    """The population to go on with, and the live keys that were said now, as words for hpcrl train.

    HpcrlError where config or data are not the population's.
    """
    from hpcrl.market.store import read_header

    assert request.population is not None
    population = Population.open(request.population)
    config, own = population.config, population.config
    if request.config is not None or request.sets:
        base = None if request.config is not None else own.model_dump(mode="json")
        config = _absolute(load_config(request.config, request.sets, base=base))
        slice = own.pbt.slice if config.pbt.slice is None else config.pbt.slice
        config = _with(config, "pbt", dir=own.pbt.dir, slice=slice)
    population.refuse_other(config, str(read_header(config.market.path)["sha256"]))
    if config.train.epochs != own.train.epochs:
        raise HpcrlError(
            f"train.epochs = {config.train.epochs}, but {population.path} is one of {own.train.epochs}: its "
            "members are compared up to there; start a new population"
        )
    live = {key: value for key, value in changed_live(own, config).items() if key != "checkpoint.dir"}
    return population, tuple(word for key, value in live.items() for word in ("--set", _item(key, value)))


def is_finished(member: Path) -> bool:
    """Whether the run of a member has done all its epochs."""
    return any((attempt.end or {}).get("code") == 0 for attempt in read_attempts(member))


def _item(key: str, value: object) -> str:
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def _absolute(config: Config) -> Config:
    """Frozen when it is made: a member does not depend on where it starts."""
    folder = Path.cwd()
    data, runs, own = (
        str(folder / Path(path).expanduser())
        for path in (config.market.path, config.checkpoint.dir, config.pbt.dir)
    )
    return _with(_with(_with(config, "market", path=data), "checkpoint", dir=runs), "pbt", dir=own)


def _with(config: Config, section: str, **values: object) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


@dataclass(frozen=True)
class Places:
    """What this machine has for members."""

    count: int
    """Members at a time."""
    ranks: int
    """Of each."""
    gpus: tuple[str, ...] = ()
    """As CUDA_VISIBLE_DEVICES names them; () where members train on cores."""

    @classmethod
    def here(cls, config: Config, ranks: int, at_once: int | None = None) -> Places:
        """HpcrlError: a member's ranks need more GPUs than there are."""
        gpus = _gpus(config.engine.device)
        if gpus and ranks > len(gpus):
            raise HpcrlError(
                f"--ranks {ranks}: each rank needs a GPU, and this machine shows {len(gpus)}; give each "
                f"member at most {len(gpus)}, or use --set engine.device=cpu"
            )
        fit = len(gpus) // ranks if gpus else max(1, len(os.sched_getaffinity(0)) // ranks)
        return cls(min(at_once or fit, config.pbt.members), ranks, gpus)

    def environment(self, place: int) -> dict[str, str]:
        """What the member in this place (0 .. count - 1) is given of the machine.

        Members share GPUs where more were asked for (--at-once) than have some of their own.
        """
        cores = max(1, len(os.sched_getaffinity(0)) // (self.count * self.ranks))
        given = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores))}
        if self.gpus:
            own = [self.gpus[(place * self.ranks + k) % len(self.gpus)] for k in range(self.ranks)]
            given["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        return given

    def words(self) -> str:
        ranks = f", {self.ranks} ranks each" if self.ranks > 1 else ""
        shared = self.count * self.ranks > len(self.gpus) > 0
        return f"{self.count} at a time{ranks}{', which share GPUs' if shared else ''}"


def _gpus(device: str) -> tuple[str, ...]:
    """The GPUs that torch sees here, by the names that their processes are to be given."""
    if device == "cpu":
        return ()
    import torch

    count = torch.cuda.device_count()
    if device == "cuda" and not count:
        raise HpcrlError("engine.device = cuda, but torch sees no CUDA device here; use auto or cpu")
    named = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    names: Sequence[str] = named or [str(number) for number in range(count)]
    return tuple(names[:count])
