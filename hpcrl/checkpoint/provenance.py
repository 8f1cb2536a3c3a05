"""config.json of a run folder: what was run, on which data, by which code; and whether it may go on."""

from __future__ import annotations

import copy
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import hpcrl
from hpcrl.config.load import validate
from hpcrl.config.root import Config, changed_keys, is_live, tree_digest
from hpcrl.storage.atomic import read_json
from hpcrl.storage.attempts import read_attempts
from hpcrl.storage.revision import git_commit
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError

FORMAT = 1
PACKAGES = ("torch", "deepspeed", "numpy", "h5py", "TA-Lib")


def run_record(config: Config, data: dict, lineage: dict | None) -> dict:
    """The contents of config.json. ``data``: path, sha256, source, symbols, features, bar_seconds."""
    return {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "config_sha256": config.digest(),
        "data": data,
        "versions": _versions(),
        "git_commit": git_commit(),
        "world_size": config.train.world_size,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "lineage": lineage,
    }


def read_record(run: RunDir) -> dict:
    """config.json of an existing run; HpcrlError if it cannot be read or is of another format."""
    record = read_json(run.config)
    if record.get("format") != FORMAT:
        raise HpcrlError(f"{run.config}: format {record.get('format')!r}, this version reads format {FORMAT}")
    data = record.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("sha256"), str):
        raise HpcrlError(f"{run.config}: not a run's config.json (data.sha256 is missing or no text)")
    if not isinstance(record.get("config"), dict):
        raise HpcrlError(f"{run.config}: not a run's config.json (config is missing or no object)")
    validate(record["config"], str(run.config))
    if tree_digest(record["config"]) != record.get("config_sha256"):
        raise HpcrlError(
            f"{run.config}: was altered by hand (its keys do not have the recorded config_sha256); undo "
            "that, or start a new run: --init with --set"
        )
    return record


def recorded_config(record: dict) -> Config:
    return validate(record["config"], "config of the run")


def resumed_tree(run: RunDir, record: dict) -> dict:
    """What a resume begins with: config.json's config, with the live keys that the last attempt changed."""
    tree = copy.deepcopy(record["config"])
    for attempt in read_attempts(run.path)[-1:]:
        for dotted, value in attempt.live.items():
            section, _, key = dotted.partition(".")
            if is_live(dotted) and key in tree.get(section, {}):
                tree[section][key] = value
    return tree


def check_resumable(run: RunDir, record: dict, config: Config, data_sha256: str) -> None:
    """A resumed run may change epochs, checkpoint, monitor and site keys only, and never its data."""
    old = recorded_config(record)
    changed = changed_keys(old, config)
    if changed:
        raise HpcrlError(
            f"{run.path.name} cannot be resumed with another {', '.join(changed[:5])}; resume it without, or "
            f"start a new run from its weights: --init {run.path}"
        )
    if record["data"]["sha256"] != data_sha256:
        raise HpcrlError(
            f"{run.path.name} was trained on data with sha256 {record['data']['sha256'][:12]}..., but "
            f"{config.market.path} has {data_sha256[:12]}...; give --set market.path=FILE with the run's data"
        )


def _versions() -> dict[str, str]:
    found = {"hpcrl": hpcrl.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found
