"""hpcrl verify where memory does not suffice for the learner: a finding with the answer, no traceback."""

from __future__ import annotations

import pytest
import torch
from findings import is_fail, is_pass
from memory_limit import room_for

from hpcrl.market.load import load_market
from hpcrl.verify import learning
from hpcrl.verify.finding import examine
from hpcrl.world.ranks import start_world


@pytest.mark.parametrize(("model", "proposed"), [("transformer", "lightweight"), ("lightweight", "bf16")])
def test_a_policy_too_large_for_this_device_is_a_finding_with_the_answer(
    config, staged, place, model, proposed
):
    wide = ("policy.d_model=4096", "policy.layers=4", "engine.precision=fp32", f"policy.model_type={model}")
    asked = config(*wide)
    trial = learning.Trial(asked, load_market(asked.market), start_world("cpu"), place)
    with room_for(24):
        found = examine("model", trial.within_memory(trial.check_model))
    is_fail(found, "out of memory on rank 0 (host memory of ", proposed)
    assert "resume" not in found.fix and "ulimit -v" in found.found and "engine.precision=bf16" in found.fix
    assert "batch_size" not in found.fix and "envs_per_gpu" not in found.fix  # there is one chunk already


def test_another_fault_stays_what_it_is(config, staged, place):
    trial = learning.Trial(config(), load_market(config().market), start_world("cpu"), place)
    is_fail(
        examine("model", trial.within_memory(lambda: str(1 // 0))), "ZeroDivisionError", "not a known fault"
    )


def test_memory_that_ends_at_the_checkpoint_is_told_as_such(config, staged, place):
    trial = learning.Trial(config(), load_market(config().market), start_world("cpu"), place)
    is_pass(examine("model", trial.within_memory(trial.check_model)))
    much = trial.trainer.portable() | {"much": torch.zeros(2, 2**25)[0]}  # a view, copied where it is saved
    trial.trainer.portable = lambda: much
    with room_for(8):
        found = examine("checkpoint", trial.within_memory(trial.check_checkpoint))
    is_fail(found, "out of memory on rank 0 (host memory of ", "ulimit -v")
