"""Run on 2 ranks by test_recompute.py: updates with and without activation checkpointing at each ZeRO stage.

python recompute_ranks.py MARKET PRECISION,STAGE ...
"""

from __future__ import annotations

import sys

from learnt import course, same

from hpcrl.world.ranks import start_world, stop_world

WORLD = start_world("cpu", None)
for case in sys.argv[2:]:
    precision, stage = case.split(",")
    for model in ("transformer", "lightweight"):
        sets = (
            f"market.path={sys.argv[1]}", f"train.world_size={WORLD.size}", f"policy.model_type={model}",
            f"engine.precision={precision}", f"engine.zero_stage={stage}", "train.deterministic=true",
        )  # fmt: skip
        same(course(WORLD, *sets), course(WORLD, *sets, "engine.activation_checkpointing=true"))
print("all held")
sys.stdout.flush()
stop_world(WORLD)
