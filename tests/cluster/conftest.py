"""The cluster of this folder's tests: booted once per test process, put in order after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers.slurm import SlurmCluster, missing_packages


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
