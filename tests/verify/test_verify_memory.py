"""hpcrl verify where memory does not suffice for the learner: a finding with the answer, no traceback."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

import psutil
import pytest
from findings import is_fail

from hpcrl.market.load import load_market
from hpcrl.verify import learning
from hpcrl.verify.finding import examine
from hpcrl.world.ranks import start_world


@contextlib.contextmanager
def room_for(mib: int) -> Iterator[None]:
    """This process may hold so much more address space than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


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
