"""Defaults < YAML < environment < --set: one frozen Config, or one error that names key and value.

Environment: TRAINING_MODE (distributed or single), GPU_COUNT (train.world_size), ENVS_PER_GPU
(env.envs_per_gpu). Imports neither torch nor DeepSpeed, so that a login node can check a run.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from hpcrl.config.root import Config
from hpcrl.types import HpcrlError

ENVIRONMENT = {
    "TRAINING_MODE": "train.training_mode",
    "GPU_COUNT": "train.world_size",
    "ENVS_PER_GPU": "env.envs_per_gpu",
}


def load_config(
    path: str | Path | None = None,
    overrides: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
    ranks: int | None = None,
    base: dict | None = None,
) -> Config:
    """Resolve a configuration.

    ``base``: a resolved config (of an earlier run) that takes the place of defaults and YAML.
    ``ranks``: what ``--ranks`` asked for; it is world_size unless environment or --set say another number.
    """
    environment = os.environ if environment is None else environment
    tree: dict[str, Any] = dict(base) if base is not None else {}
    origin = "config of the run" if base is not None else "defaults"
    if path is not None:
        tree, origin = _merge(tree, read_yaml(path)), str(path)
    said: dict[str, Any] = {}
    if base is None:
        for name, key in ENVIRONMENT.items():
            if environment.get(name):
                said[key] = _scalar(environment[name])
    for item in overrides:
        key, _, value = item.partition("=")
        if not key or "=" not in item:
            raise HpcrlError(f"--set {item!r}: expected key=value, for example --set learn.lr=1e-4")
        said[key.strip()] = _scalar(value)
    if ranks is not None:
        wanted = said.get("train.world_size", ranks)
        if wanted != ranks:
            raise HpcrlError(
                f"--ranks {ranks} disagrees with train.world_size = {wanted} "
                "(from GPU_COUNT or --set); give the same number"
            )
        said["train.world_size"] = ranks
    for key, value in said.items():
        _set(tree, key, value)
    return validate(tree, origin)


def one_process(config: Config, environment: Mapping[str, str] | None, overrides: Iterable[str]) -> Config:
    """The same config for one process without a launcher.

    Raises where the user said another world_size by GPU_COUNT or --set: a YAML file written for eight
    GPUs may be tried on a laptop, an explicit number may not be ignored.
    """
    environment = os.environ if environment is None else environment
    said = any(item.partition("=")[0].strip() == "train.world_size" for item in overrides)
    said = said or bool(environment.get("GPU_COUNT"))
    if said and config.train.world_size != 1 and config.train.training_mode != "single":
        raise HpcrlError(
            f"train.world_size = {config.train.world_size}, but this is one process without a launcher: "
            f"add --ranks {config.train.world_size}, start it by torchrun or srun, or set "
            "TRAINING_MODE=single"
        )
    tree = config.model_dump(mode="json")
    tree["train"]["world_size"] = 1
    return validate(tree, "one process")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; an ``include: other.yaml`` (beside it) is read first."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise HpcrlError(f"config {path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise HpcrlError(f"config {path}: is not a text file") from None
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise HpcrlError(
            f"config {path}{where}: not valid YAML ({getattr(error, 'problem', error)})"
        ) from None
    if not isinstance(tree, dict):
        raise HpcrlError(f"config {path}: expected sections (train:, env:, ...), found {type(tree).__name__}")
    if "include" in tree:
        parent = read_yaml(Path(path).parent / str(tree.pop("include")))
        tree = _merge(parent, tree)
    return tree


def validate(tree: dict[str, Any], origin: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise HpcrlError(f"config ({origin}): " + "; ".join(lines)) from None


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    value = item.get("input")
    if item["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, _all_keys(Config), n=1, cutoff=0.4)
        hint = f"; nearest valid key: {close[0]}" if close else ""
        return f"unknown key {key} = {value!r}{hint}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key} = {value!r}: {message[0].lower()}{message[1:]}"


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _all_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _merge(low: dict, high: dict) -> dict:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _set(tree: dict, dotted: str, value: Any) -> None:
    *sections, leaf = dotted.split(".")
    node = tree
    for section in sections:
        child = node.get(section)
        node[section] = dict(child) if isinstance(child, dict) else {}
        node = node[section]
    node[leaf] = value


def _scalar(text: str) -> Any:
    """A value as YAML reads it; 1e-4 is a number here, which YAML 1.1 takes for a string."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
