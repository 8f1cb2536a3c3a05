"""The cluster of this folder's tests: booted once per test process, put in order after each test.

And what a run that goes through a fault is compared with: the same run, to which nothing happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import runs
from servers.slurm import SlurmCluster, missing_packages
from trial import EPOCHS, LONG, RANKS, Trial, arguments, furnish

from hpcrl.market.stage import stage_synthetic


@pytest.fixture(scope="session")
def slurm_session() -> Iterator[SlurmCluster]:
    missing = missing_packages()
    if missing:
        # In CI, where none may be skipped, the session then fails (tests/conftest.py).
        pytest.skip(f"no Slurm cluster without Debian's {' '.join(missing)}; as root: make test-system")
    cluster = SlurmCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def slurm(slurm_session: SlurmCluster) -> Iterator[SlurmCluster]:
    """A cluster without jobs whose four nodes are idle."""
    yield slurm_session
    slurm_session.reset()


@pytest.fixture(scope="session")
def market_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("market") / "market.h5"
    stage_synthetic(path, symbols=("AAPL", "MSFT"), bars=1000)
    return path


def _undisturbed(place: Path, market_file: Path, epochs: int) -> Path:
    furnish(place, market_file)
    runs.hpcrl("train", *arguments(epochs), "--ranks", str(RANKS), cwd=place, timeout=1200)
    return runs.only_run(place)


@pytest.fixture(scope="session")
def reference(tmp_path_factory, market_file) -> Path:
    return _undisturbed(tmp_path_factory.mktemp("reference"), market_file, EPOCHS)


@pytest.fixture(scope="session")
def long_reference(tmp_path_factory, market_file) -> Path:
    return _undisturbed(tmp_path_factory.mktemp("long_reference"), market_file, LONG)


@pytest.fixture
def trial(slurm, tmp_path, market_file):
    """``trial(options of sbatch...)``: a job that has trained for ``seen`` epochs."""

    def begin(*options: str, epochs: int = EPOCHS, seen: int = 3, **more) -> Trial:
        found = Trial(slurm, furnish(tmp_path, market_file), epochs, *options, **more)
        found.wait_epoch(seen)
        return found

    return begin
