"""Weights and optimiser state by parameter name, gathered from and spread over any ZeRO stage and world size.

The only file that touches DeepSpeed's internals, hence the version check. Format of a snapshot (CPU tensors
and primitives, loadable with ``weights_only=True``):

    {"format": 1, "weights": {name: float32}, "exp_avg": {name: float32}, "exp_avg_sq": {name: float32},
     "step": int, "group": {"lr", "betas", "eps", "weight_decay"}}

Exact: a run continued from it takes the same steps, bit for bit. Loading keeps the engine's own learning rate
and settings; ``group`` tells what the donor had. Every function is collective.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hpcrl.types import HpcrlError

FORMAT = 1
TESTED = "0.19.8"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_SETTINGS = ("lr", "betas", "eps", "weight_decay")


def check_version() -> None:
    """HpcrlError unless DeepSpeed is the release whose internals are known here."""
    import deepspeed

    found = deepspeed.__version__.split("+")[0]
    if found != TESTED:
        raise HpcrlError(
            f"deepspeed {found} is installed, but hpcrl knows the internals of {TESTED} only: "
            f"pip install deepspeed=={TESTED}"
        )


def named_parameters(ds: Any) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in ds.module.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def _flat_masters(ds: Any) -> list[Tensor]:
    """The fp32 tensors that the optimiser really steps on this rank."""
    stage = ds.zero_optimization_stage()
    if stage == 3:
        return list(ds.optimizer.fp32_partitioned_groups_flat)
    if stage in (1, 2):
        return list(ds.optimizer.single_partition_of_fp32_groups)
    return [parameter for _, parameter in named_parameters(ds)]


def _torch_optimizer(ds: Any) -> torch.optim.Optimizer:
    return ds.optimizer.optimizer if ds.zero_optimization_stage() else ds.optimizer


def create_states(ds: Any) -> None:
    """Give AdamW its zero state before the first step, so that a snapshot is whole at step 0 already.

    DeepSpeed links parameters to optimiser states only while it steps; done here for all groups at once.
    """
    optimizer = _torch_optimizer(ds)
    for master in _flat_masters(ds):
        if optimizer.state.get(master):
            raise HpcrlError("the optimiser has stepped while it was built; its state would be wrong")
        fused = bool(optimizer.param_groups[0].get("fused"))
        optimizer.state[master] = {
            "step": torch.zeros((), dtype=torch.float32, device=master.device if fused else "cpu"),
            "exp_avg": torch.zeros_like(master, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(master, memory_format=torch.preserve_format),
        }
    if ds.zero_optimization_stage() in (1, 2):
        ds.optimizer._lazy_init_hp_params_optimizer_state()


def at_step_0(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The snapshot of an optimiser that has not stepped."""
    zeros = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    return {"format": FORMAT, "weights": weights, **dict.fromkeys(_MOMENTS, zeros), "step": 0}


def gather(ds: Any) -> dict[str, Any]:
    """The snapshot, whole on every rank."""
    stage = ds.zero_optimization_stage()
    optimizer = _torch_optimizer(ds)
    weights: dict[str, Tensor] = {}
    moments: dict[str, dict[str, Tensor]] = {key: {} for key in _MOMENTS}
    for name, parameter in named_parameters(ds):
        weights[name] = _cpu(_read(ds, stage, parameter, None))
        for key in _MOMENTS:
            moments[key][name] = _cpu(_read(ds, stage, parameter, key))
    steps = {int(optimizer.state[master]["step"]) for master in _flat_masters(ds)}
    if len(steps) != 1:
        raise HpcrlError(f"the optimiser's parts disagree on the step count: {sorted(steps)}")
    group = optimizer.param_groups[0]
    settings: dict[str, Any] = {key: group[key] for key in _SETTINGS}
    settings["betas"] = [float(beta) for beta in settings["betas"]]
    settings["lr"] = float(settings["lr"])
    return {"format": FORMAT, "weights": weights, **moments, "step": steps.pop(), "group": settings}


def _cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def _read(ds: Any, stage: int, parameter: nn.Parameter, key: str | None) -> Tensor:
    if stage == 3:
        return ds.optimizer.get_full_hp_param(parameter, key)
    if stage in (1, 2):
        return parameter.get_full_hp_param(key)  # type: ignore[attr-defined]
    return parameter if key is None else _torch_optimizer(ds).state[parameter][key]


def check(ds: Any, snapshot: dict[str, Any]) -> None:
    """HpcrlError naming the first thing in which ``snapshot`` does not fit this engine's module."""
    if snapshot.get("format") != FORMAT:
        raise HpcrlError(f"snapshot format {snapshot.get('format')!r} is not known; expected {FORMAT}")
    stage = ds.zero_optimization_stage()
    shapes = {
        name: tuple(parameter.ds_shape if stage == 3 else parameter.shape)  # type: ignore[attr-defined]
        for name, parameter in named_parameters(ds)
    }
    for part in ("weights", *_MOMENTS):
        found = {name: tuple(tensor.shape) for name, tensor in snapshot[part].items()}
        for name in sorted(shapes.keys() | found.keys()):
            if name not in found:
                raise HpcrlError(f"snapshot: {part} of parameter {name} {shapes[name]} are missing")
            if name not in shapes:
                raise HpcrlError(
                    f"snapshot: {part} of {name} {found[name]} belong to no parameter of this policy"
                )
            if shapes[name] != found[name]:
                raise HpcrlError(
                    f"snapshot: {part} of parameter {name} have shape {found[name]}, "
                    f"this policy's have {shapes[name]}; the policy's config differs"
                )


@torch.no_grad()
def spread(ds: Any, snapshot: dict[str, Any]) -> None:
    """Write ``snapshot`` into fp32 masters, moments, step counts and the copies that the forward reads."""
    check(ds, snapshot)
    stage = ds.zero_optimization_stage()
    if stage == 3:
        # Drop gathered copies first: they would outlive the new weights without a word.
        ds.optimizer._partition_all_parameters()
    for name, parameter in named_parameters(ds):
        _write(ds, stage, parameter, None, snapshot["weights"][name])
        for key in _MOMENTS:
            _write(ds, stage, parameter, key, snapshot[key][name])
    optimizer = _torch_optimizer(ds)
    for master in _flat_masters(ds):
        optimizer.state[master]["step"].fill_(snapshot["step"])
    if stage == 3:
        _refresh_stage_3(ds)
    ds.zero_grad() if stage == 0 else ds.optimizer.zero_grad()


def _write(ds: Any, stage: int, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
    if stage == 3:
        _write_partition(ds, parameter, key, value)
        return
    value = value.to(parameter.device, torch.float32)
    if stage in (1, 2):
        parameter.set_full_hp_param(value, key)  # type: ignore[attr-defined]
        if key is None:
            parameter.data.copy_(value)  # the call above leaves the compute copy stale
    elif key is None:
        parameter.data.copy_(value)
    else:
        _torch_optimizer(ds).state[parameter][key].copy_(value)


def _write_partition(ds: Any, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
    """This rank's share of ``value``. DeepSpeed's own setter fails where the size does not divide evenly."""
    partition, _ = ds.optimizer._get_fp32_opt_state_partition(parameter, False, key)
    rank = ds.optimizer._get_param_partition_rank(parameter)
    share = value.flatten()[partition.numel() * rank : partition.numel() * (rank + 1)]
    partition.zero_()
    partition[: share.numel()].copy_(share)


def _refresh_stage_3(ds: Any) -> None:
    """What DeepSpeed does at the end of a step: masters to compute partitions, then the persistent ones."""
    zero = ds.optimizer
    for index in range(len(zero.fp16_groups)):
        zero._reassign_or_swap_out_partitioned_parameters(index)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
    zero.invalidate_secondary_tensor()


@torch.no_grad()
def copy_compute_weights(ds: Any, copy: nn.Module) -> None:
    """Compute-precision weights into a plain module of the same architecture, cast to its own dtypes."""
    targets = dict(copy.named_parameters())
    sources = dict(ds.module.named_parameters())
    if targets.keys() != sources.keys():
        odd = sorted(targets.keys() ^ sources.keys())
        raise HpcrlError(f"the copy is of another architecture: {', '.join(odd[:5])} on one side only")
    if ds.zero_optimization_stage() == 3:
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(sources.values())):
            for name, target in targets.items():
                target.copy_(sources[name])
    else:
        for name, target in targets.items():
            target.copy_(sources[name])
