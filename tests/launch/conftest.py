"""Folders in which populations are made: of stand-ins, or small ones that train."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from local_populations import MEMBER, REAL, SMALL, TESTS

from hpcrl.market.stage import stage_planted
from hpcrl.report import population_plot


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    """A working folder whose members are stand-ins."""
    (tmp_path / "hpcrl").mkdir()
    (tmp_path / "hpcrl/__init__.py").write_text(f"__path__.append({str(REAL)!r})\n")
    (tmp_path / "hpcrl/__main__.py").write_text(MEMBER.format(tests=str(TESTS)))
    (tmp_path / "plan").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """They take longer than the rest."""
    monkeypatch.setattr(population_plot, "write_plots", lambda population: [])


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("market") / "market.h5"
    stage_planted(path, "L2", bars=1500)
    return path


@pytest.fixture
def small(tmp_path, market, monkeypatch) -> Path:
    """A folder with small.yaml and market.h5 in it."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    (tmp_path / "market.h5").symlink_to(market)
    monkeypatch.chdir(tmp_path)
    return tmp_path
