"""What a comparison compares: runs, and members of populations, by the paths that a user gives.

A population stands for its best member by validation evidence (the highest objective among the members'
newest records, as ``hpcrl pbt status`` marks it), at the checkpoint of that record; or for all its members.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from hpcrl.checkpoint.load import LoadedRun, load_data
from hpcrl.config.root import flatten
from hpcrl.evaluate.evaluate import open_policy, prepare
from hpcrl.evaluate.sealed import journal_folder
from hpcrl.pbt.history import Past, best_of, read_past
from hpcrl.pbt.population import Population, population_of
from hpcrl.pbt.records import Record
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError

NOT_OF_A_GROUP = ("train.seed", "market.path", "market.local_copy", "engine.device")
NOT_OF_A_GROUP_SECTIONS = ("checkpoint.", "monitor.", "pbt.")
"""Keys in which runs may differ and yet be seeds of one configuration."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One policy to be played."""

    path: Path
    """As ``evaluate_run`` takes it."""
    epoch: int | None
    """Checkpoint to take; None: the newest."""
    name: str
    group: str
    """Runs with the same differ by their seed only."""
    seed: int
    loaded: LoadedRun
    population: Population | None = None
    notes: tuple[str, ...] = ()

    @property
    def journal_folder(self) -> Path:
        """Where openings of the test split are logged for it."""
        return journal_folder(self.loaded.checkpoint)


@dataclass(frozen=True, eq=False)
class Contenders:
    """All that was given, in order."""

    candidates: tuple[Candidate, ...]
    populations: tuple[tuple[Population, tuple[Past, ...]], ...]


def read_contenders(paths: Iterable[str | Path], *, members: bool, device: str) -> Contenders:
    """``members``: of a population all members, not its best alone. ``device``: as ``evaluate_run`` takes it.

    HpcrlError: nothing, or the same twice; no run, checkpoint or population there; one without a record.
    """
    candidates: list[Candidate] = []
    populations = []
    for given in map(Path, paths):
        if (given / "population.json").is_file():
            population = Population.open(given)
            past = read_past(population)
            populations.append((population, past))
            candidates += _of_population(population, past, members, device)
        else:
            candidates.append(_of_run(given, device))
    _refuse_doubles(candidates)
    return Contenders(tuple(_named(candidates)), tuple(populations))


def _of_run(path: Path, device: str) -> Candidate:
    loaded, _ = open_policy(path, None, device)
    found = population_of(loaded.path) if loaded.record is not None else None
    if found is not None:  # its course is its population's, not its seed's alone
        population, number = found
        name = f"{population.path.name}/{number:02d}"
        return Candidate(path, None, name, str(loaded.checkpoint), number, loaded)
    alone = loaded.record is None
    group = str(loaded.checkpoint) if alone else configuration(loaded)
    return Candidate(path, None, loaded.name, group, loaded.config.train.seed, loaded)


def _of_population(
    population: Population, past: tuple[Past, ...], members: bool, device: str
) -> list[Candidate]:
    best = best_of(past)
    if best is None:
        raise HpcrlError(
            f"{population.path}: no member has been scored yet, so there is no best one to compare"
        )
    if not members:
        return [_member(population, best, device, f"{population.path.name} (best: {best.member:02d})")]
    records = [each.newest.record for each in past if each.newest]
    return [
        _member(population, record, device, f"{population.path.name}/{record.member:02d}")
        for record in records
    ]


def _member(population: Population, record: Record, device: str, name: str) -> Candidate:
    """At the checkpoint that the record tells of, where it is still there."""
    folder = population.folder(record.member)
    there = record.epoch in RunDir.open(folder).manifest_epochs()
    loaded, _ = open_policy(folder, record.epoch if there else None, device)
    said = f"its record is of epoch {record.epoch}, whose checkpoint is gone: epoch {loaded.epoch} is played"
    notes = () if there else (said,)
    epoch = record.epoch if there else None
    return Candidate(folder, epoch, name, str(folder), record.member, loaded, population, notes)


def configuration(loaded: LoadedRun) -> str:
    """All that makes a policy but its seed: config, data, epoch, ranks, and what it started from."""
    flat: dict[str, Any] = {
        key: value
        for key, value in flatten(loaded.config.model_dump(mode="json")).items()
        if key not in NOT_OF_A_GROUP and not key.startswith(NOT_OF_A_GROUP_SECTIONS)
    }
    flat["epoch"], flat["data"] = loaded.epoch, loaded.data_sha256
    flat["lineage"] = (loaded.record or {}).get("lineage")
    return json.dumps(flat, sort_keys=True, default=str)


def _refuse_doubles(candidates: list[Candidate]) -> None:
    seen: dict[Path, Candidate] = {}
    for each in candidates:
        file = each.loaded.checkpoint.resolve()
        if file in seen:
            raise HpcrlError(
                f"{each.name} and {seen[file].name} are the same policy ({file.name}): give it once"
            )
        seen[file] = each
    if not candidates:
        raise HpcrlError("nothing to compare: give run folders, checkpoints or populations")


def _named(candidates: list[Candidate]) -> list[Candidate]:
    """Names that tell them apart: of several checkpoints of a run its epoch, else the folder above."""
    found = []
    for each in candidates:
        name = each.name
        alike = [other for other in candidates if other.name == name]
        if sum(other.loaded.path == each.loaded.path for other in alike) > 1:
            name = f"{name} epoch {each.loaded.epoch}"
        elif len(alike) > 1:
            name = f"{each.loaded.path.parent.name}/{name}"
        found.append(replace(each, name=name))
    return found


def same_bars(candidates: Sequence[Candidate], split: str, data: str | Path | None) -> str:
    """The data's sha256. HpcrlError naming who cannot play, or the first two with other bars."""
    first: tuple[Candidate, tuple[str, str, str]] | None = None
    for each in candidates:
        market = load_data(each.loaded, data)
        try:
            _, plan = prepare(each.loaded, market, split, torch.device("cpu"))
        except HpcrlError as error:
            raise HpcrlError(f"{each.name}: {error}") from None
        lo, hi = plan.lo, plan.hi
        ends = f"{_iso(market.ts_B[lo])} to {_iso(market.ts_B[hi - 1])} UTC, {hi - lo} bars"
        own = (market.sha256, ", ".join(market.symbols), ends)
        first = first or (each, own)
        other, theirs = first
        if own != theirs:
            raise HpcrlError(f"{other.name} and {each.name} {_unlike(theirs, own, split)}")
    assert first is not None
    return first[1][0]


def _unlike(one: tuple[str, str, str], other: tuple[str, str, str], split: str) -> str:
    """What tells (sha256, symbols, ends) of two apart, in words."""
    why = "only results on the same bars compare"
    if one[0] != other[0]:
        return (
            f"are runs of other data (sha256 {one[0][:12]}... and {other[0][:12]}...): {why}; name one file "
            "with --data"
        )
    if one[1] != other[1]:
        return f"trade other symbols ({one[1]}; {other[1]}): {why}"
    return f"have another {split} split ({one[2]}; {other[2]}): {why}"


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%d %H:%M")
