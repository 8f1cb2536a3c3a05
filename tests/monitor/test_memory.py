"""Out of memory, answered: errors are known by what they say, and only what helps and may be is proposed."""

from __future__ import annotations

import errno
import re
import weakref
from itertools import product
from pathlib import Path

import numpy
import pytest
import torch
from memory_limit import room_for

from hpcrl.config.load import load_config
from hpcrl.config.root import is_live
from hpcrl.monitor.memory import answer, remedies, sizes
from hpcrl.types import HpcrlError
from hpcrl.world import memory
from hpcrl.world.agree import all_or_none
from hpcrl.world.memory import GIB, OutOfMemory, Shortage, shortage_of, size

GPU = Shortage(3, "node7", "cuda:1, H200,", True, 2 * GIB, 75 * GIB, 80 * GIB, GIB, GIB)
HOST = Shortage(0, "node7", "host memory", False, 0, GIB, 2 * GIB, limit="address space, ulimit -v")


def config(*sets: str):
    small = ("env.envs_per_gpu=1000", "learn.batch_size=32000", "learn.rollout=512", "train.world_size=8")
    return load_config(environment={}, overrides=(*small, *sets))


def proposed(line: str) -> list[str]:
    return re.findall(r"--set (\S+?=\S+?):?(?= |$)", line)


# --- Which errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask", [lambda: torch.empty(10**15), lambda: numpy.empty(10**15)], ids=["torch", "numpy"]
)
def test_what_the_hosts_allocators_say_is_known_with_the_bytes_asked_for(one_rank, ask):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        ask()
    found = shortage_of(caught.value, one_rank)
    assert found is not None and not found.on_gpu
    assert 0.9e15 < found.asked < 9e15 and 0 < found.used < found.total


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("std::bad_alloc"),
        RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.distributed.DistBackendError("ncclUnhandledCudaError ... Cuda failure 'out of memory'"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_other_words_for_it_are_known_too(one_rank, error):
    assert shortage_of(error, one_rank) is not None


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The size of tensor a (0) must match"),
        HpcrlError("the checkpoint says: CUDA out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("can't start new thread"),
        RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
        ),
    ],
    ids=str,
)
def test_other_errors_are_not_taken_for_it(one_rank, error):
    assert shortage_of(error, one_rank) is None


def test_a_gpus_figures_are_those_of_the_moment_that_torch_tells(monkeypatch, one_rank):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 * GIB)  # what is left by now
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
    world = type(one_rank)(1, 2, 1, torch.device("cuda:1"), "slurm")
    text = (
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has a total capacity of 80.00 GiB of which "
        "1.00 GiB is free. Process 7 has 79.00 GiB memory in use. Of the allocated memory 60.00 GiB is "
        "allocated by PyTorch, and 10.00 GiB is reserved by PyTorch but unallocated."
    )
    found = shortage_of(torch.OutOfMemoryError(text), world)
    assert found is not None and found.asked == 2.5 * GIB
    assert (found.used, found.spare, found.others, found.total) == (60 * GIB, 10 * GIB, 9 * GIB, 80 * GIB)
    assert re.match(
        r"out of memory on rank 1 \(cuda:1, H200, of \S+\): 2.50 GiB asked for, 60.00 GiB of", str(found)
    )


def broken() -> None:
    raise RuntimeError("CUDA error: out of memory, and no device answers")


def test_what_cannot_be_measured_is_told_without_figures(monkeypatch, one_rank):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: broken())
    found = shortage_of(torch.OutOfMemoryError("x"), type(one_rank)(1, 2, 1, torch.device("cuda:1"), "slurm"))
    assert found is not None and found.on_gpu
    assert re.fullmatch(
        r"out of memory on rank 1 \(cuda:1 of \S+\): what .* could not be measured", str(found)
    )
    assert "what helps" in answer(found, "update", 7, config())
    monkeypatch.setattr("psutil.Process", lambda: numpy.empty(10**15))
    found = shortage_of(MemoryError(), one_rank)
    assert found is not None and (found.used, found.total) == (0, 0)


def test_an_agreement_lets_go_of_what_the_failed_action_held(one_rank, monkeypatch):
    """And no rank leaves it before the others know."""
    held: list[weakref.ref] = []
    told: list[object] = []

    def action() -> None:
        large = numpy.zeros(10)
        held.append(weakref.ref(large))
        raise MemoryError

    def gather(world: object, value: object) -> list[object]:
        told.append(value)
        assert held[0]() is None
        return [None, value]

    monkeypatch.setattr("psutil.Process", lambda: numpy.empty(10**15))
    monkeypatch.setattr("hpcrl.world.agree.gather_objects", gather)
    with pytest.raises(OutOfMemory, match="out of memory on rank 1"):
        all_or_none(type(one_rank)(1, 2, 1, torch.device("cpu"), "slurm"), action)
    assert len(told) == 2


def test_a_ulimit_comes_before_a_cgroup_whose_use_is_that_of_all_in_it(tmp_path, monkeypatch):
    own = Path("/proc/self/cgroup").read_text().partition("0::/")[2].strip()
    folder = tmp_path / own
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{3 * 2**20}\n")
    (folder / "memory.current").write_text(f"{2 * 2**20}\n")
    assert memory._cgroups(tmp_path)[0] == (2 * 2**20, 3 * 2**20)
    monkeypatch.setattr(memory, "_cgroups", lambda: [(2 * 2**20, 3 * 2**20)])
    used, total, limit = memory._host()
    assert (used, total) == (2 * 2**20, 3 * 2**20) and "cgroup" in limit
    with room_for(1000):
        assert "ulimit -v" in memory._host()[2]


def test_sizes_are_read_easily():
    assert [size(n) for n in (12, 3 * 2**20, 3 * GIB, 200 * GIB)] == [
        "12 bytes",
        "3.00 MiB",
        "3.00 GiB",
        "200 GiB",
    ]


def test_a_single_ranks_error_passes_through_the_agreement(one_rank):
    with pytest.raises(MemoryError):
        all_or_none(one_rank, lambda: numpy.empty(10**15))


# --- What is proposed -------------------------------------------------------------------------------

GRID = list(
    product(
        ("update", "rollout", "build", "turn", "trial"),
        ("policy.model_type=transformer", "policy.model_type=lightweight"),
        (("engine.precision=fp32", "engine.zero_stage=0"), ("engine.precision=bf16", "engine.zero_stage=2")),
        ("env.envs_per_gpu=1000", "env.envs_per_gpu=1", "env.envs_per_gpu=250"),
        ("learn.batch_size=256", "learn.batch_size=512", "learn.batch_size=128000"),
        (("policy.d_model=256", "policy.layers=1"), ("policy.d_model=4096", "policy.layers=6")),
    )
)


def test_everything_proposed_is_another_value_that_the_config_takes():
    said = 0
    for phase, model, engine, envs, batch, trunk in GRID:
        given = [model, *engine, envs, batch, *trunk]
        try:
            before = config(*given)
        except HpcrlError:
            continue
        for line in remedies(GPU, phase, before):
            sets = proposed(line)
            after = config(*given, *sets)  # raises where it would be refused
            live = all(is_live(item.partition("=")[0]) for item in sets)
            assert not sets or (after != before and ("(resume)" in line) == live), line
            assert after.learn.batch_size <= before.learn.batch_size, line
            assert after.env.envs_per_gpu <= before.env.envs_per_gpu, line
            said += bool(sets)
    assert said > 300


def keys(phase: str, *sets: str, shortage: Shortage = GPU) -> list[str]:
    found = [proposed(line) for line in remedies(shortage, phase, config(*sets))]
    return [items[0].partition("=")[0].partition(".")[2] for items in found if items]


def test_an_update_is_lessened_by_recomputing_then_by_smaller_batches():
    assert keys("update") == ["activation_checkpointing", "batch_size", "envs_per_gpu", "model_type"]
    lines = remedies(GPU, "update", config())
    assert "--set learn.batch_size=16000: now 32000; 32 steps" not in lines[1]
    assert proposed(lines[1]) == ["learn.batch_size=12800"]  # 16000 is no whole number of chunks
    assert keys("update", "engine.activation_checkpointing=true", "engine.precision=fp32")[:2] == [
        "batch_size", "precision",
    ]  # fmt: skip


def test_a_batch_of_one_chunk_is_lessened_by_shorter_chunks_or_not_at_all():
    one = ("learn.batch_size=256", "learn.sequence_length=256")
    assert (
        "--set learn.sequence_length=128 --set learn.batch_size=128"
        in remedies(GPU, "update", config(*one))[1]
    )
    assert "batch_size" not in keys("update", *one, "policy.window=256")


def test_a_rollout_is_lessened_by_fewer_environments_and_never_by_the_batch():
    assert keys("rollout", "engine.precision=fp32")[:2] == ["envs_per_gpu", "precision"]
    assert "activation_checkpointing" not in keys("rollout")
    assert proposed(remedies(GPU, "rollout", config())[0]) == ["env.envs_per_gpu=500"]


def test_weights_that_outweigh_the_rollout_are_lessened_first():
    large = ("policy.d_model=8192", "policy.layers=40", "env.envs_per_gpu=10", "learn.batch_size=256")
    assert keys("build", *large)[0] == "zero_stage" and keys("build")[0] == "envs_per_gpu"
    assert "zero_stage" not in keys("build", *large, "train.world_size=1")
    assert "zero_stage" not in keys("build", *large, "engine.zero_stage=3")


def test_pieces_and_other_processes_are_told_where_they_are_the_matter(monkeypatch):
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    assert not any("expandable" in line or "nvidia-smi" in line for line in remedies(GPU, "update", config()))
    pieces = Shortage(0, "n", "cuda:0", True, GIB, 60 * GIB, 80 * GIB, spare=9 * GIB, others=10 * GIB)
    first, second, *_ = remedies(pieces, "update", config())
    assert first.startswith("export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: 9.00 GiB are free")
    assert "others hold 10.00 GiB" in second
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    assert "expandable" not in remedies(pieces, "update", config())[0]


def test_the_hosts_limit_is_named(one_rank):
    assert remedies(HOST, "build", config())[0] == "a higher ulimit -v (now 2.00 GiB), or none (resume)"
    job = Shortage(0, "n", "host memory", False, 0, GIB, 20 * GIB, limit="the limit of its cgroup, --mem")
    assert remedies(job, "build", config())[0] == "--mem=41G for the job (now 20.00 GiB) (resume)"


# --- The message ------------------------------------------------------------------------------------


def test_the_message_has_what_happened_the_sizes_and_how_to_go_on(tmp_path):
    text = answer(GPU, "update", 7, config(), tmp_path / "checkpoints" / "dist_run_x").splitlines()
    assert text[0].startswith(
        "out of memory on rank 3 (cuda:1, H200, of node7): 2.00 GiB asked for, 75.00 GiB of 80"
    )
    assert text[0].endswith("in the update of epoch 7") and len(text[0]) < 250
    assert "envs_per_gpu 1000" in text[1] and "8 ranks, activation checkpointing off" in text[1]
    assert "--resume" in text[-1] and "--init" in text[-1]
    assert max(map(len, text[2:-1])) < 160
    assert sizes(config("engine.activation_checkpointing=true")).endswith("checkpointing on")


def test_of_a_run_that_was_not_begun_nothing_can_be_resumed():
    text = answer(GPU, "build", 0, config())
    assert "resume" not in text and text.endswith("no run was begun: start it again with one of these")


def test_a_members_config_is_settled(tmp_path):
    (tmp_path / "population.json").write_text("{}")
    text = answer(GPU, "update", 7, config(), Path(tmp_path / "members" / "03"))
    assert "settled by its population" in text and "learn.batch_size=" not in text
    assert "engine.activation_checkpointing=true" in text


def test_so_it_is_before_a_member_has_begun(tmp_path, monkeypatch):
    """A path of one name, too, as it can be given."""
    (tmp_path / "population.json").write_text("{}")
    (tmp_path / "members" / "03").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "members")
    text = answer(GPU, "update", 0, config(), Path("03"), begun=False)
    assert "settled by its population" in text and "learn.batch_size=" not in text
    assert "no run was begun" in text and "resume" not in text


def test_the_error_keeps_its_figures():
    assert OutOfMemory(GPU, "told").shortage is GPU and str(OutOfMemory(GPU)) == str(GPU)
    assert OutOfMemory(GPU).exit_code == 1
