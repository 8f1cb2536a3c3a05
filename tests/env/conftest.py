from pathlib import Path

import pytest
from gym_markets import crashing_file, planted_file


@pytest.fixture(scope="session")
def planted_path(tmp_path_factory) -> Path:
    return planted_file(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="session")
def crashing_path(tmp_path_factory) -> Path:
    return crashing_file(tmp_path_factory.mktemp("crashing"))
