from __future__ import annotations

from collections.abc import Iterator

import pytest

from hpcrl.world.ranks import start_world, stop_world
from hpcrl.world.world import World


@pytest.fixture(scope="session")
def one_rank() -> Iterator[World]:
    """This process as the only rank; a process group can be made once."""
    world = start_world("cpu", 1)
    yield world
    stop_world(world)
