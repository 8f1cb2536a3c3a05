"""A population's folder, which its members share: population.json, and a run folder for each member.

pbt_YYYYMMDD_HHMMSS/
  population.json        seed, config, hashes of config and data: written once, never changed
  members/03/            an ordinary run (``storage/run_dir``); its attempts hold what others read as well:
    jobs/config.yaml     the member's own config: its seed, and where its hyperparameters begin
    attempts/N/pbt/      journal.jsonl, records/, snapshots/, pins/ (``records``, ``journal``)

A member is fenced like any run: what an attempt writes that a newer one has replaced lands in a folder of its
own, which nobody reads any more.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from hpcrl.config.load import validate, with_values
from hpcrl.config.pbt import MIN_WINDOWS, PbtConfig
from hpcrl.config.root import LIVE_KEYS, Config, changed_keys, flatten, is_live
from hpcrl.pbt.mutate import Values, fit, seed_of, start, values_of
from hpcrl.storage.atomic import read_json, to_json
from hpcrl.storage.run_dir import new_folder
from hpcrl.types import HpcrlError

FORMAT = 1
NAME = "pbt_%Y%m%d_%H%M%S"


@dataclass(frozen=True)
class Population:
    path: Path
    id: str
    """Random: a record of another population is known by it."""
    config: Config
    """As every member has it but for its seed and its hyperparameters."""
    config_sha256: str
    data_sha256: str
    windows: int
    """Validation windows that each member plays in a turn."""
    created: str

    @property
    def pbt(self) -> PbtConfig:
        return self.config.pbt

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def members(self) -> range:
        return range(self.pbt.members)

    @property
    def generations(self) -> int:
        """Turns until the last epoch, the one there included."""
        return self.config.train.epochs // self.pbt.interval

    def folder(self, member: int) -> Path:
        """The member's run folder."""
        return self.path / "members" / f"{member:02d}"

    def start(self, member: int) -> Values:
        return start(values_of(self.config), self.pbt, self.seed, member)

    @classmethod
    def create(cls, config: Config, data_sha256: str, windows: int) -> Population:
        """Make the folder under ``pbt.dir``. ``config``: resolved, with absolute paths.

        HpcrlError: a start value outside its bounds, too few windows, fewer epochs than one turn.
        """
        check(config, windows)
        record = {
            "format": FORMAT,
            "id": secrets.token_hex(8),
            "config": config.model_dump(mode="json"),
            "config_sha256": config.digest(),
            "data_sha256": data_sha256,
            "windows": windows,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        text = to_json(record)
        # Chance is dealt out key by key: to whoever makes the members in the order in which all read them.
        config = validate(json.loads(text)["config"], "the population's config")
        files = {"population.json": text}
        for member in range(config.pbt.members):
            own = member_config(config, member)
            text = yaml.safe_dump(own.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            files[f"members/{member:02d}/jobs/config.yaml"] = f"# Member {member} as it begins\n{text}"
        return cls.open(new_folder(Path(config.pbt.dir), NAME, files))

    @classmethod
    def open(cls, path: str | Path) -> Population:
        """HpcrlError: no population there, or one of another format."""
        file = Path(path) / "population.json"
        if not file.is_file():
            why = "it holds no population.json" if Path(path).is_dir() else "there is no such folder"
            raise HpcrlError(f"{path}: no population ({why}); hpcrl pbt run makes one")
        path = Path(path).absolute()
        value = read_json(file)
        if value.get("format") != FORMAT:
            raise HpcrlError(f"{file}: format {value.get('format')!r}, this version reads {FORMAT}")
        try:
            return cls(
                path=path,
                id=str(value["id"]),
                config=validate(value["config"], str(file)),
                config_sha256=str(value["config_sha256"]),
                data_sha256=str(value["data_sha256"]),
                windows=int(value["windows"]),
                created=str(value["created"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise HpcrlError(f"{file}: does not hold what a population holds ({error!r})") from None

    def refuse_other(self, config: Config, data_sha256: str | None) -> None:
        """HpcrlError naming what differs, where this population is asked to go on with another config."""
        a, b = (flatten(each.model_dump(mode="json")) for each in (self.config, config))
        changed = [
            key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key) and not is_live(key)
        ]
        if changed:
            words = ", ".join(
                f"{key} = {_short(b.get(key))} (was {_short(a.get(key))})" for key in changed[:3]
            )
            raise HpcrlError(
                f"{self.path} is a population of another config: {words}; only {', '.join(LIVE_KEYS)} may "
                "change. Start a new population"
            )
        if data_sha256 is not None and data_sha256 != self.data_sha256:
            raise HpcrlError(
                f"{self.path} is a population of other data: sha256 {self.data_sha256[:12]}..., that of "
                f"{config.market.path} is {data_sha256[:12]}...; restore the file, or start a new population"
            )


def population_of(run: Path) -> tuple[Population, int] | None:
    """The population that a run folder is a member of, and which one; None for any other run."""
    run = run.absolute()
    if run.parent.name != "members" or not (run.parents[1] / "population.json").is_file():
        return None
    population = Population.open(run.parents[1])
    if not run.name.isdigit() or int(run.name) not in population.members:
        raise HpcrlError(f"{run}: the population has the members 0 to {len(population.members) - 1}")
    return population, int(run.name)


def refuse_other_member(run: Path, config: Config) -> None:
    """HpcrlError where a member is to train by another config than its population gave it."""
    found = population_of(run)
    if found is None:
        return
    population, number = found
    changed = changed_keys(member_config(population.config, number), config)
    if changed:
        raise HpcrlError(
            f"{run}: is member {number} of a population, and cannot train with another "
            f"{', '.join(changed[:5])} than that gave it (members/{number:02d}/jobs/config.yaml as it was "
            "made, without --set or the environment's ENVS_PER_GPU)"
        )


def check(config: Config, windows: int) -> None:
    """What can be wrong with a population before it begins. HpcrlError, one line."""
    pbt = config.pbt
    values_of(config)
    for key, bounds in pbt.space.items():
        for bound in (bounds.low, bounds.high):
            try:
                with_values(config, {key: fit(key, bound, bounds)})
            except HpcrlError as error:
                why = str(error).partition(": ")[2]
                raise HpcrlError(f"pbt.space: {key} cannot go as far as its bound {bound:g}: {why}") from None
    for key, bounds in pbt.space.items():
        if pbt.explore == "perturb" and bounds.scale == "linear" and bounds.low <= 0 <= bounds.high:
            raise HpcrlError(
                f"pbt.space: {key}: no factor leads away from 0, which its bounds hold ({bounds.low:g} to "
                f"{bounds.high:g}); leave 0 out, or set pbt.explore=resample"
            )
    if config.train.epochs < pbt.interval:
        raise HpcrlError(
            f"train.epochs = {config.train.epochs} is less than pbt.interval = {pbt.interval}: members would "
            "never be compared"
        )
    if windows < 2 * MIN_WINDOWS:
        kind = (
            "sessions"
            if pbt.objective.window_bars is None
            else f"windows of {pbt.objective.window_bars} bars"
        )
        raise HpcrlError(
            f"the validation split holds {windows} {kind}; a population needs at least {2 * MIN_WINDOWS} "
            f"({MIN_WINDOWS} to rank, {MIN_WINDOWS} to test): stage more bars, raise "
            f"market.validation_fraction = {config.market.validation_fraction:g}, or shorten windows by "
            "pbt.objective.window_bars"
        )


def member_config(config: Config, member: int) -> Config:
    """The member's own: its seed and its first hyperparameters."""
    values = start(values_of(config), config.pbt, config.train.seed, member)
    return with_values(config, values | {"train.seed": seed_of(config.train.seed, member)})


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
