"""A folder without secrets, Slurm or a site, small configs, and made-up bars."""

from __future__ import annotations

from pathlib import Path

import pytest
from findings import SMALL
from launch.slurm_answers import Answers

from hpcrl.config.load import load_config
from hpcrl.market.stage import stage_synthetic


@pytest.fixture(scope="module")
def staged(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("market") / "market.h5"
    stage_synthetic(path, symbols=("AAPL", "MSFT"), bars=900)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder of its own, without secrets, Slurm or a site."""
    monkeypatch.chdir(tmp_path)
    for name in ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "HPCRL_SITE", "SLURM_JOB_ID", "LOADEDMODULES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def config(place, staged):
    def make(*sets: str):
        return load_config(overrides=(*SMALL, f"market.path={staged}", *sets), environment={})

    return make


@pytest.fixture
def slurm(place, monkeypatch) -> Answers:
    answers = Answers(place / "bin")
    monkeypatch.setenv("PATH", str(answers.folder))
    return answers
