"""Defaults < YAML < environment < --set: one frozen Config, or one error that names key and value.

Environment: TRAINING_MODE (distributed or single), GPU_COUNT (train.world_size), ENVS_PER_GPU
(env.envs_per_gpu). Imports neither torch nor DeepSpeed, so that a login node can check a run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpcrl.config.explain import broken_sections, explain, sets
from hpcrl.config.root import Config
from hpcrl.config.yaml_file import Layer, read_layers, read_value
from hpcrl.types import HpcrlError

ENVIRONMENT = {
    "TRAINING_MODE": "train.training_mode",
    "GPU_COUNT": "train.world_size",
    "ENVS_PER_GPU": "env.envs_per_gpu",
}
WORLD_SIZE = ("train", "world_size")


def load_config(
    path: str | Path | None = None,
    overrides: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
    ranks: int | None = None,
    base: dict | None = None,
) -> Config:
    """Resolve a configuration.

    ``base``: a resolved config (of an earlier run) that takes the place of the defaults.
    ``environment``: None is the process's own; a resumed run gives {}, for it goes on as it was.
    ``ranks``: what ``--ranks`` asked for; it is world_size unless environment or --set say another number.
    """
    layers = [] if base is None else [Layer("config of the run", base)]
    layers += [] if path is None else read_layers(path)
    said = _said(environment, overrides)
    layers += said
    if ranks is not None:
        if any(sets(layer.tree, WORLD_SIZE) for layer in said):
            wanted = _resolve(layers).train.world_size
            if wanted != ranks:
                raise HpcrlError(
                    f"--ranks {ranks} disagrees with train.world_size = {wanted} "
                    "(from GPU_COUNT or --set); give the same number"
                )
        layers.append(Layer(f"--ranks {ranks}", _nested("train.world_size", ranks)))
    return _resolve(layers)


def one_process(config: Config, environment: Mapping[str, str] | None, overrides: Iterable[str]) -> Config:
    """The same config for one process without a launcher.

    Raises where the user said another world_size by GPU_COUNT or --set: a YAML file written for eight
    GPUs may be tried on a laptop, an explicit number may not be ignored.
    """
    said = any(sets(layer.tree, WORLD_SIZE) for layer in _said(environment, overrides))
    if said and config.train.world_size != 1 and config.train.training_mode != "single":
        raise HpcrlError(
            f"train.world_size = {config.train.world_size}, but this is one process without a launcher: "
            f"add --ranks {config.train.world_size}, start it by torchrun or srun, or set "
            "TRAINING_MODE=single"
        )
    tree = config.model_dump(mode="json")
    tree["train"]["world_size"] = 1
    return validate(tree, "one process")


def validate(tree: dict[str, Any], origin: str, layers: Sequence[Layer] = ()) -> Config:
    """The tree as a Config. ``origin`` names it in errors; ``layers`` tell who set which key."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise HpcrlError(explain(error.errors(), layers, origin)) from None


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """The config with these dotted keys changed, checked like any other."""
    tree = config.model_dump(mode="json")
    for key, value in values.items():
        *place, name = key.split(".")
        section = tree
        for part in place:
            section = section[part]
        section[name] = value
    return validate(tree, "hyperparameters")


def overridden(overrides: Iterable[str], key: str) -> bool:
    """Whether one of the ``--set`` items sets this dotted key."""
    return any(sets(layer.tree, key.split(".")) for layer in _said({}, overrides))


def _said(environment: Mapping[str, str] | None, overrides: Iterable[str]) -> list[Layer]:
    """What the environment and ``--set`` say, in the order in which it counts."""
    environment = os.environ if environment is None else environment
    layers = []
    for name, key in ENVIRONMENT.items():
        if environment.get(name):
            origin = f"environment {name}"
            layers.append(Layer(origin, _nested(key, read_value(environment[name], origin))))
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise HpcrlError(f"--set {item!r}: expected key=value, for example --set learn.lr=1e-4")
        origin = f"--set {' '.join(item.split()):.100}"
        layers.append(Layer(origin, _nested(key.strip(), read_value(value, origin))))
    return layers


def _resolve(layers: Sequence[Layer]) -> Config:
    broken = [f"{layer.origin}: {line}" for layer in layers for line in broken_sections(layer.tree)]
    if broken:
        raise HpcrlError("; ".join(broken))
    tree: dict[Any, Any] = {}
    for layer in layers:
        try:
            tree = _merge(tree, layer.tree)
        except RecursionError:
            raise HpcrlError(f"{layer.origin}: a section contains itself (by a YAML alias)") from None
    return validate(tree, "config", layers)


def _merge(low: dict, high: dict) -> dict:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    """("a.b", 1) -> {"a": {"b": 1}}"""
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value
