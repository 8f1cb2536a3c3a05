from __future__ import annotations

from pathlib import Path

import pytest
import runs

from hpcrl.market.stage import stage_synthetic


@pytest.fixture(scope="session")
def market_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("market") / "market.h5"
    stage_synthetic(path, symbols=("AAPL", "MSFT"), bars=1000)
    return path


@pytest.fixture
def place(tmp_path, market_file) -> Path:
    """A folder with tiny.yaml and market.h5 in it, in which runs are made."""
    return runs.furnish(tmp_path, market_file)


@pytest.fixture(scope="session")
def reference(tmp_path_factory, market_file) -> Path:
    """The run folder of an uninterrupted run of tiny.yaml."""
    folder = runs.furnish(tmp_path_factory.mktemp("reference"), market_file)
    runs.hpcrl("train", "--config", "tiny.yaml", cwd=folder)
    return runs.only_run(folder)
