"""Many processes read one file while new versions are staged over it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from market_data import ROOT, walk

from hpcrl.market.stage import stage_frame

READERS = 64
VERSIONS = 5


@pytest.mark.slow
def test_each_of_64_readers_sees_a_whole_old_file_or_a_whole_new_one(tmp_path):
    path = tmp_path / "m.h5"

    def stage(version: int) -> str:
        rows = 2000 + version
        return f"{stage_frame(walk(rows, version), path, source='test', calendar='24/7').sha256} {rows}"

    expected = [stage(0)]
    command = [sys.executable, str(Path(__file__).with_name("readers.py")), str(path), str(READERS)]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environ, text=True, **pipes) as readers:
        seen: dict[str, list[str]] = {}

        def wait_for(version: str) -> None:
            while len(seen) < READERS or any(found[-1] != version for found in seen.values()):
                line = readers.stdout.readline()
                assert line, readers.stderr.read()
                number, found = line.strip().split(" ", 1)
                seen.setdefault(number, []).append(found)

        wait_for(expected[0])
        for version in range(1, VERSIONS + 1):  # all 64 read while each of these is staged
            expected.append(stage(version))
        wait_for(expected[-1])
        rest, errors = readers.communicate()
    assert (readers.returncode, rest, errors) == (0, "", "")
    assert sum(map(len, seen.values())) > 2 * READERS  # they read between the first version and the last
    for found in seen.values():  # whole files, and never an older one again
        assert found == [version for version in expected if version in found]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.h5", "m.report.json"]
