"""Populations to look at, made once: tests that alter one take a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from population_cases import new_population, played

from hpcrl.pbt.population import Population


@pytest.fixture
def population(tmp_path) -> Population:
    """Nobody has begun."""
    return new_population(tmp_path)


@pytest.fixture(scope="session")
def _played(tmp_path_factory) -> Population:
    return played(tmp_path_factory.mktemp("played"), members=5, quantile=0.4)


@pytest.fixture
def copy_of_played(_played, tmp_path) -> Callable[[], Population]:
    """A new copy of a population that is over; its attempts share files by hard link, as they did."""

    def copy() -> Population:
        target = tmp_path / f"copy_{sum(1 for _ in tmp_path.iterdir())}" / _played.path.name
        inodes: dict[int, str] = {}

        def link(source: str, destination: str) -> None:
            inode = Path(source).stat().st_ino
            if inode in inodes:
                Path(destination).hardlink_to(inodes[inode])
            else:
                shutil.copy(source, destination)
                inodes[inode] = destination

        shutil.copytree(_played.path, target, copy_function=link)
        return Population.open(target)

    return copy
