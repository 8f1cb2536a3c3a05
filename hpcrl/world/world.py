"""Who this process is among the ranks. Built once, passed explicitly; nothing here is global."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    local_rank: int
    device: torch.device
    launcher: Literal["none", "torchrun", "slurm"]

    @property
    def is_main(self) -> bool:
        return self.rank == 0
