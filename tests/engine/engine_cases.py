"""Run on 1 or 2 ranks by test_engine.py: every case at every allowed stage and precision, in one process.

python engine_cases.py FOLDER STEP      STEP: quick (bf16, stage 1) | full | verify
"""

from __future__ import annotations

import copy
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpcrl.config.engine import EngineConfig
from hpcrl.config.learn import LearnConfig
from hpcrl.engine.engine import Engine
from hpcrl.types import HpcrlError
from hpcrl.world.collectives import gather_objects
from hpcrl.world.ranks import start_world, stop_world

warnings.simplefilter("error", FutureWarning)
CASES = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3), ("bf16", 1), ("bf16", 2), ("bf16", 3)]
DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}
WORLD = start_world("cpu", None)
torch.set_num_threads(1)


class Net(nn.Module):
    """Sizes that no number of ranks divides, a lone parameter, a float table, one without gradient."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3))
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.idle = nn.Parameter(torch.ones(3))
        self.register_buffer("table", torch.tensor([1 / 3]))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.to(self.scale.dtype)).float() * self.scale.float() * self.table


def learn(**changes: Any) -> LearnConfig:
    return LearnConfig(**({"lr": 0.01, "weight_decay": 0.02, "max_grad_norm": 1e6} | changes))


def build(case: tuple[str, int], seed: int = 0, **changes: Any) -> Engine:
    config = EngineConfig(precision=case[0], zero_stage=case[1])  # type: ignore[arg-type]
    return Engine(Net(seed), config, learn(**changes), WORLD)


def batch(index: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * rank + index)
    return torch.randn(4, 5, generator=generator), torch.randn(4, 3, generator=generator)


def loss_of(model: Any, index: int, rank: int) -> Tensor:
    x, y = batch(index, rank)
    return ((model(x) - y) ** 2).mean()


def train(engine: Engine, steps: range, rank: int = 0) -> None:
    for index in steps:
        with torch.no_grad():  # the old log-probabilities: forwards without a backward in between
            engine(batch(index, rank)[0])
        engine.backward(loss_of(engine, index, rank))
        assert engine.step().applied


def assert_same(a: dict[str, Any], b: dict[str, Any], what: str) -> None:
    assert a["step"] == b["step"], (what, a["step"], b["step"])
    for part in ("weights", "exp_avg", "exp_avg_sq"):
        assert a[part].keys() == b[part].keys()
        for name in a[part]:
            if not torch.equal(a[part][name], b[part][name]):
                gap = float((a[part][name] - b[part][name]).abs().max())
                raise AssertionError(f"{what}: {part} of {name} differ by {gap}")


def hand_written(case: tuple[str, int], steps: int, clip: float) -> tuple[dict[str, Tensor], list[float]]:
    """AdamW by its formulas on float32 masters, gradients averaged over ranks in the compute precision."""
    masters = {name: p.detach().clone() for name, p in Net().named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in masters.items()}
    second = {name: torch.zeros_like(p) for name, p in masters.items()}
    norms = []
    for index in range(steps):
        each = []
        for rank in range(WORLD.size):
            net = Net()
            table = net.table.clone()
            net = net.to(DTYPE[case[0]])
            net.table.data = table
            for name, parameter in net.named_parameters():
                parameter.data.copy_(masters[name])
            loss_of(net, index, rank).backward()
            each.append(
                {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in net.named_parameters()}
            )
        grads = {name: (sum(g[name] for g in each) / WORLD.size).float() for name in masters}
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads.values()))
        norms.append(norm)
        scale = min(1.0, clip / (norm + 1e-6))
        for name, weight in masters.items():
            grad = grads[name] * scale
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad * grad
            root = (second[name] / (1 - 0.999 ** (index + 1))).sqrt() + 1e-5
            weight.mul_(1 - 0.01 * 0.02).sub_(0.01 * first[name] / (1 - 0.9 ** (index + 1)) / root)
    return masters, norms


def check_against_hand_written(case: tuple[str, int]) -> None:
    clip = 0.3
    expected, norms = hand_written(case, 8, clip)
    engine = build(case, max_grad_norm=clip)
    assert norms[0] > clip, norms  # else clipping is not tested
    for index in range(8):
        engine.backward(loss_of(engine, index, WORLD.rank))
        result = engine.step()
        assert math.isclose(result.grad_norm, norms[index], rel_tol=1e-4), (case, result, norms[index])
    found = engine.snapshot()
    assert found["step"] == 8
    for name, weight in expected.items():
        gap = float((found["weights"][name] - weight).abs().max())
        assert gap < (5e-6 if case[0] == "fp32" else 1e-6 if WORLD.size == 1 else 2e-5), (case, name, gap)
    engine.close()


def check_continuation(case: tuple[str, int], folder: Path) -> None:
    """Interrupted equals uninterrupted, bit for bit, over an engine that trained elsewhere, clipping on."""
    engine = build(case, max_grad_norm=0.3)
    train(engine, range(3), WORLD.rank)
    path = folder / f"own_{case[0]}_{case[1]}_{WORLD.size}_{WORLD.rank}.pt"
    torch.save(engine.snapshot(), path)
    train(engine, range(3, 6), WORLD.rank)
    expected = engine.snapshot()
    engine.close()

    other = build(case, seed=9, max_grad_norm=0.3, lr=0.005)
    train(other, range(40, 42), WORLD.rank)
    stored = torch.load(path, weights_only=True)
    assert stored["group"]["lr"] == 0.01 and stored["step"] == 3
    other.load(stored)
    assert other.lr == 0.005, "a load must not bring the donor's learning rate"
    assert_same(other.snapshot(), stored, f"{case} reading back")
    other.set_lr(0.01)
    train(other, range(3, 6), WORLD.rank)
    assert_same(other.snapshot(), expected, f"{case} continuing")
    check_refresh(case, other)
    other.set_lr(0.0)
    before = other.snapshot()["weights"]
    train(other, range(6, 7), WORLD.rank)
    for name, weight in other.snapshot()["weights"].items():
        assert torch.equal(weight, before[name]), "a learning rate of 0 must not move the weights"
    other.close()


def check_refresh(case: tuple[str, int], engine: Engine) -> None:
    weights = engine.snapshot()["weights"]
    for dtype in (DTYPE[case[0]], torch.float32):
        plain = Net(seed=5).to(dtype)
        plain.table.data = torch.tensor([1 / 3])
        engine.refresh(plain)
        for name, parameter in plain.named_parameters():
            assert torch.equal(parameter, weights[name].to(DTYPE[case[0]]).to(dtype)), (case, name)
            assert parameter.requires_grad and parameter.dtype == dtype
        if dtype == DTYPE[case[0]]:
            with torch.no_grad():
                x = batch(7, 0)[0]
                assert torch.equal(plain(x), engine(x)), case
    assert engine.module.table.dtype == torch.float32 and torch.equal(
        engine.module.table, torch.tensor([1 / 3])
    )


def check_snapshot_at_step_0(case: tuple[str, int]) -> None:
    engine = build(case)
    start = engine.snapshot()
    assert start["step"] == 0 and all(not t.any() for t in start["exp_avg"].values())
    for name, parameter in Net().named_parameters():
        assert torch.equal(start["weights"][name], parameter), name
    train(engine, range(2))
    expected = engine.snapshot()
    engine.load(start)
    train(engine, range(2))
    assert_same(engine.snapshot(), expected, f"{case} from step 0")
    engine.close()


class _NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * math.nan


def check_non_finite(case: tuple[str, int]) -> None:
    """One rank's bad loss or gradient: nobody steps, nothing changes, and the next good one is taken."""
    engine = build(case)
    train(engine, range(2), WORLD.rank)
    before = engine.snapshot()
    bad = WORLD.rank == WORLD.size - 1
    for kind in ("nan loss", "infinite loss, finite gradient", "nan gradient"):
        loss = loss_of(engine, 2, WORLD.rank)
        if bad and kind == "nan loss":
            loss = loss * math.nan
        elif bad and kind == "nan gradient":
            loss = _NanGradient.apply(loss)
        elif bad:
            loss = loss + math.inf
        engine.backward(loss)
        result = engine.step()
        assert not result.applied and not math.isfinite(result.grad_norm), (case, kind, result)
        assert_same(engine.snapshot(), before, f"{case} {kind}")
    train(engine, range(2, 4), WORLD.rank)
    after = engine.snapshot()
    fresh = build(case, seed=3)
    fresh.load(before)
    train(fresh, range(2, 4), WORLD.rank)
    assert_same(fresh.snapshot(), after, f"{case} after skipped steps")
    assert all(
        other == float(after["weights"]["scale"])
        for other in gather_objects(WORLD, float(after["weights"]["scale"]))
    )
    engine.close()
    fresh.close()


def check_wrong_architecture(case: tuple[str, int]) -> None:
    engine = build(case)
    good = engine.snapshot()
    for change, says in [
        (lambda s: s["weights"].pop("scale"), "scale (1,) are missing"),
        (lambda s: s["exp_avg"].update(extra=torch.zeros(2)), "extra (2,) belong to no parameter"),
        (lambda s: s["weights"].update(scale=torch.zeros(4)), "scale have shape (4,)"),
        (lambda s: s.update(format=99), "format 99"),
    ]:
        wrong = copy.deepcopy(good)
        change(wrong)
        try:
            engine.load(wrong)
        except HpcrlError as error:
            assert says in str(error), error
        else:
            raise AssertionError(f"{says}: not refused")
    assert_same(engine.snapshot(), good, "after refusals")
    engine.close()


def write_for_others(folder: Path) -> None:
    """A snapshot after 3 steps, and where 3 more lead; every rank sees the same data."""
    for precision, stage in (("fp32", 2), ("bf16", 3)):
        engine = build((precision, stage))
        train(engine, range(3))
        middle = engine.snapshot()
        train(engine, range(3, 6))
        end = engine.snapshot()
        if WORLD.is_main:
            torch.save({"at": middle, "end": end}, folder / f"other_{precision}_{stage}_{WORLD.size}.pt")
        engine.close()


def check_others(folder: Path) -> None:
    """Whatever stage and world size wrote it: every stage here continues it bit for bit."""
    paths = sorted(folder.glob(f"other_*_{2 if WORLD.size == 1 else 1}.pt")) or sorted(
        folder.glob("other_*.pt")
    )
    for path in paths:
        stored = torch.load(path, weights_only=True)
        precision = path.name.split("_")[1]
        for case in CASES:
            if case[0] == precision:
                engine = build(case, seed=4)
                train(engine, range(50, 51))
                engine.load(stored["at"])
                train(engine, range(3, 6))
                assert_same(engine.snapshot(), stored["end"], f"{path.name} into {case} on {WORLD.size}")
                engine.close()


def main(folder: Path, step: str) -> None:
    if step != "verify":
        for case in [("bf16", 1)] if step == "quick" else CASES:
            check_against_hand_written(case)
            check_continuation(case, folder)
            check_snapshot_at_step_0(case)
            check_non_finite(case)
            check_wrong_architecture(case)
    if step == "full":
        write_for_others(folder)
    if step != "quick":
        check_others(folder)
    print("all held")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    stop_world(WORLD, 0)
