"""The monitor on scripted GPUs: the right one is read, and each kind of trouble has its line."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pynvml
import pytest
import torch
from scripted_nvml import HEAT_DRIVER, HEAT_HARDWARE, IDLE, POWER_CAP, Card, Nvml

from hpcrl.monitor.advice import gpu_warnings, imbalance, split_of
from hpcrl.monitor.console import TrainingConsole
from hpcrl.monitor.gpu import THROTTLES, Gpu, NoGpu, decode
from hpcrl.monitor.sampler import EVERY_SECONDS, Sampler

CUDA = [torch.device("cuda", index) for index in range(3)]


@pytest.fixture
def node(monkeypatch):
    """Three GPUs, shown to CUDA in another order than NVML's."""
    nvml = Nvml([Card("GPU-aa", celsius=41), Card("GPU-bb", celsius=52), Card("GPU-cc", celsius=63)])
    shown = ["cc", "aa", "bb"]  # as torch gives them: without the prefix
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=shown[device.index])
    )
    return nvml


def figures(node: Nvml, device: torch.device = CUDA[0], samples: int = 1) -> dict:
    sampler = Sampler(device)
    for _ in range(samples):
        assert sampler.take()
    return sampler.read()


def epoch(**changes: object) -> dict:
    """Metrics of a healthy epoch of ten seconds."""
    usual = {
        "time/epoch": 10.0, "time/env": 1.0, "time/policy": 2.0, "time/learn": 6.5, "time/rebuild": 0.3,
        "gpu/utilisation": 0.95, "gpu/memory_gib": 60.0, "gpu/memory_total_gib": 80.0,
        "gpu/temperature_c": 60.0, "gpu/power_w": 500.0, "gpu/clock_mhz": 1900.0, "gpu/throttled": 0.0,
        "gpu/throttles": [], "host/cpu": 0.5, "host/memory_gib": 3.0, "host/available_gib": 200.0,
    }  # fmt: skip
    return usual | changes


def test_the_names_of_the_throttles_are_those_of_nvmls_bits():
    named = {
        pynvml.nvmlClocksThrottleReasonSwPowerCap: "power cap",
        pynvml.nvmlClocksThrottleReasonHwSlowdown: "hardware slowdown",
        pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "heat (driver)",
        pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "heat (hardware)",
        pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "power brake",
    }
    assert named == THROTTLES
    assert decode(POWER_CAP | HEAT_HARDWARE | IDLE) == ("power cap", "heat (hardware)")
    assert decode(IDLE | pynvml.nvmlClocksThrottleReasonSyncBoost) == ()


@pytest.mark.parametrize(("device", "celsius"), zip(CUDA, (63.0, 41.0, 52.0), strict=True))
def test_permuted_devices_are_read_by_their_uuid(node, device, celsius):
    assert figures(node, device)["gpu/temperature_c"] == celsius


def test_what_is_read_is_the_mean_or_the_highest_since_the_last_read(node):
    sampler = Sampler(CUDA[1])
    for utilisation, celsius, reasons in ((100, 70, 0), (40, 80, HEAT_DRIVER), (70, 75, HEAT_DRIVER)):
        card = node.cards[0]
        card.utilisation, card.celsius, card.reasons = utilisation, celsius, reasons
        assert sampler.take()
    found = sampler.read()
    assert found["gpu/utilisation"] == pytest.approx(0.7) and found["gpu/temperature_c"] == 80.0
    assert found["gpu/throttled"] == pytest.approx(2 / 3) and found["gpu/throttles"] == ["heat (driver)"]
    assert (found["gpu/memory_gib"], found["gpu/memory_total_gib"]) == (60.0, 80.0)
    assert (found["gpu/power_w"], found["gpu/clock_mhz"]) == (500.0, 1900.0)
    assert not any(key.startswith("gpu/") for key in sampler.read())


def test_sampling_and_reading_take_less_than_a_hundredth_of_a_second_each_second(node, record_property):
    """In its own thread, by that thread's clock; the driver's part is not in it."""
    with Sampler(CUDA[0], every_seconds=0.001) as sampler:
        clock = time.pthread_getcpuclockid(sampler._thread.ident)
        until = time.monotonic() + 60
        while len(sampler._samples) < 200 and time.monotonic() < until:
            time.sleep(0.01)
        spent, samples = time.clock_gettime(clock), len(sampler._samples)
        begin = time.thread_time()
        assert sampler.read()["gpu/utilisation"] > 0
        reading = time.thread_time() - begin
    assert samples >= 200
    record_property("sampler, CPU time of a sample in us", round(spent / samples * 1e6))
    record_property("sampler, CPU time of a read in us", round(reading * 1e6))
    assert spent / samples + reading < 0.01 * EVERY_SECONDS


def test_without_a_driver_it_says_so_once_and_goes_on_with_the_host(node):
    node.driver = False
    with Sampler(CUDA[0]) as sampler:
        assert "GPU-cc: NVML does not answer (Driver Not Loaded)" in sampler.news()
        assert sampler.news() == ""
        found = sampler.read()
    assert found.keys() == {"host/cpu", "host/memory_gib", "host/available_gib"}


def test_without_a_gpu_it_says_so_once_and_the_figures_are_those_of_this_process():
    with Sampler(torch.device("cpu")) as sampler:
        assert sampler.news() == "no GPU here: CPU and memory figures only" and sampler.news() == ""
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
        found = sampler.read()
    assert 0 < found["host/cpu"] <= 1.1 and 0.05 < found["host/memory_gib"] < 30
    assert found["host/available_gib"] > 0


def test_a_gpu_that_falls_off_the_bus_is_told_once_and_sampled_no_more(node):
    with Sampler(CUDA[2], every_seconds=0.01) as sampler:
        assert sampler.news() == ""
        node.cards[1].lost = True
        sampler._thread.join(timeout=10)
        assert not sampler._thread.is_alive()
        assert "GPU-bb has fallen off the bus" in sampler.news() and sampler.news() == ""
        sampler.read()
        assert "gpu/utilisation" not in sampler.read()


def test_a_gpu_that_nvml_does_not_know_is_told(node):
    node.cards.pop()
    with pytest.raises(NoGpu, match="GPU-cc: NVML does not answer"):
        Gpu(CUDA[0])


def test_a_healthy_gpu_has_no_line():
    assert gpu_warnings(epoch(), 10) == []
    assert gpu_warnings({key: v for key, v in epoch().items() if not key.startswith("gpu/")}, 10) == []


def test_heat_and_throttling_have_their_lines(node):
    node.cards[2].celsius, node.cards[2].reasons, node.cards[2].mhz = 87, HEAT_HARDWARE, 1200
    hot, throttled = gpu_warnings(epoch() | figures(node), 10)
    assert hot == "87 C is hot (limit 85): check the node's fans and airflow"
    assert throttled.startswith("throttled by heat (hardware) in 100% of the samples (1200 MHz): check the ")
    node.cards[2].celsius, node.cards[2].reasons = 84, POWER_CAP
    (capped,) = gpu_warnings(epoch() | figures(node), 10)
    assert capped.startswith("throttled by power cap") and "power supply" in capped


@pytest.mark.parametrize(
    ("spans", "share", "remedy"),
    [
        ({"time/env": 7.0, "time/policy": 1.0, "time/learn": 1.5}, "70%", "raise env.envs_per_gpu"),
        ({"time/env": 1.0, "time/policy": 6.0, "time/learn": 2.0}, "60%", "the policy's steps in rollouts"),
        ({"time/env": 1.0, "time/policy": 2.0, "time/learn": 6.0}, "60%", "raise learn.batch_size"),
        ({"time/env": 0.5, "time/policy": 0.5, "time/learn": 1.0}, "77%", "saving, waiting for other ranks"),
    ],
)
def test_an_idle_gpu_is_told_with_where_the_time_goes(node, spans, share, remedy):
    node.cards[2].utilisation = 35
    (line,) = gpu_warnings(epoch(**spans) | figures(node), 10)
    assert line.startswith(f"utilisation 35% is low; {share} of the epoch") and remedy in line
    assert sum(split_of(epoch(**spans)).values()) == pytest.approx(1.0)


def test_memory_that_is_nearly_full_or_mostly_free_has_advice_in_numbers(node):
    node.cards[2].used_gib = 78.0
    (full,) = gpu_warnings(epoch() | figures(node), 10)
    assert full.startswith("memory nearly full, 78.0 of 80.0 GiB") and "lightweight" in full
    node.cards[2].used_gib = 16.0
    (free,) = gpu_warnings(epoch() | figures(node), 10)
    # 46 environments take at most 46 / 10 of 16 GiB: 73.6 of 80.
    assert free.startswith("64.0 of 80.0 GiB are free: env.envs_per_gpu 46 would fit (now 10)")


def ranks(*rollouts: float, **changes: object) -> list[dict]:
    """Ranks that take these seconds for their rollouts; ``changes`` are of the last."""
    found = [
        epoch(node=f"gpu{index // 2:02}") | {"time/env": seconds - 2.3}
        for index, seconds in enumerate(rollouts)
    ]
    return [*found[:-1], found[-1] | changes]


def test_one_slow_rank_is_named_with_its_node_and_an_advised_split():
    line = imbalance(ranks(5.0, 5.0, 5.0, 10.0), 70)
    assert line.startswith("rank 3 on gpu01 holds the others up: its rollout takes 10.0 s, theirs 5.0 s")
    assert line.endswith("the ranks' environments would be 80 80 80 40")


def test_even_ranks_and_a_single_one_have_no_line():
    assert imbalance(ranks(5.0, 5.1, 5.2, 5.9), 10) == ""
    assert imbalance(ranks(5.0), 10) == ""


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"gpu/throttled": 0.5, "gpu/throttles": ["power cap"]}, "its GPU is throttled (power cap)"),
        ({"gpu/clock_mhz": 1200.0}, "its GPU's clock is 1200 MHz, the others' 1900"),
        ({"host/available_gib": 0.4}, "its node has 0.4 GiB of memory left"),
        ({"host/cpu": 0.2}, "something else runs on its node"),
        ({}, "may be shared with another job"),
    ],
)
def test_the_likely_cause_of_a_slow_rank_is_named(changes, cause):
    assert cause in imbalance(ranks(5.0, 5.0, 8.0, **changes), 10)


def test_every_rank_prints_its_figures_and_its_warnings(capsys):
    TrainingConsole(0, 5, "plain").devices(epoch(), ["hot"])
    TrainingConsole(3, 5, "plain").devices(epoch(), ["hot"])
    cpu = {key: value for key, value in epoch().items() if not key.startswith("gpu/")}
    TrainingConsole(1, 5, "plain").devices(cpu, [])
    assert capsys.readouterr().out.splitlines() == [
        "[GPU 0] Utilisation 95%, memory 60.0 of 80.0 GiB, 60 C, 500 W, 1900 MHz",
        "[GPU 0] WARNING: hot",
        "[GPU 3] Utilisation 95%, memory 60.0 of 80.0 GiB, 60 C, 500 W, 1900 MHz",
        "[GPU 3] WARNING: hot",
        "[GPU 1] CPU 50% of its cores, memory 3.0 GiB",
    ]
