"""Run by test_kill.py and test_ranks_save.py: saves epochs until it is killed or has done COUNT.

python save_loop.py FOLDER START COUNT [FSIZE_RANK FSIZE]
"""

from __future__ import annotations

import resource
import sys

import torch

from hpcrl.checkpoint.manager import CheckpointManager
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import RunFailed
from hpcrl.world.ranks import start_world, stop_world


def state(epoch: int, rank: int) -> tuple[dict, dict]:
    return {"epoch": epoch, "w": torch.full((5000,), float(epoch))}, {"epoch": epoch, "rank": rank}


def main() -> None:
    folder, start, count, *limit = sys.argv[1:]
    world = start_world("cpu", None)
    manager = CheckpointManager(RunDir.open(folder), world, 2)
    epoch = int(start)
    if epoch < 0:  # resume
        found = manager.newest()
        assert found is not None, "no checkpoint to resume from"
        portable, own = manager.load(found)
        assert portable["epoch"] == found.epoch == float(portable["w"][0])
        assert own is not None and own == {"epoch": found.epoch, "rank": world.rank}
        epoch = found.epoch
    print("ready", epoch, flush=True)
    for at in range(epoch, epoch + int(count)):
        if limit and at == epoch + int(count) - 1 and world.rank == int(limit[0]):
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit[1]), int(limit[1])))
        try:
            manager.save(at, *state(at, world.rank), kept=at % 5 == 0)
        except RunFailed as error:
            print(f"failed: {error}", flush=True)
            stop_world(world, 1)
    stop_world(world, 0)


if __name__ == "__main__":
    main()
