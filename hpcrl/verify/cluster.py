"""Slurm: does it answer, and does the partition take the job that the config and the site file ask for?"""

from __future__ import annotations

import os
import re
from pathlib import Path

from hpcrl.config.load_site import load_site
from hpcrl.config.root import Config
from hpcrl.config.site import Site, seconds_of
from hpcrl.types import HpcrlError
from hpcrl.verify.finding import Doubt, Trouble
from hpcrl.world.slurm import NoSlurm, job_id, run_slurm


def check_slurm(config: Config, site_file: Path | None) -> str:
    """No Slurm is a warning, unless a site file needs it. Limits that the job does not meet fail.

    In a job there is nothing to ask: Slurm has taken it, and it trains on where no controller answers.
    """
    job = job_id()
    if job is not None and site_file is None:
        return f"job {job} on {os.environ.get('SLURM_JOB_NODELIST', 'this node')}"
    site = load_site(site_file)
    try:
        text = run_slurm(["scontrol", "-o", "show", "partition"])
    except NoSlurm as none:
        raise Doubt(str(none), "training runs on this machine; on a cluster, use a login node") from None
    except HpcrlError as error:
        fix = "ask the cluster's administrators, or wait until it answers; training here needs no Slurm"
        raise (Doubt if site_file is None else Trouble)(str(error), fix) from None
    partitions = dict(map(_fields, text.splitlines()))
    name, limits = _choose(partitions, site)
    _check_limits(name, limits, config, site)
    most = limits.get("MaxTime", "UNLIMITED")
    return f"partition {name}: {limits.get('State')}, {limits.get('TotalNodes')} nodes, at most {most}"


def _fields(line: str) -> tuple[str, dict[str, str]]:
    fields = dict(re.findall(r"(\S+?)=(\S*)", line))
    return fields.get("PartitionName", ""), fields


def _choose(partitions: dict[str, dict[str, str]], site: Site) -> tuple[str, dict[str, str]]:
    partitions.pop("", None)
    asked = site.job("train").partition
    if asked is not None:
        names = asked.split(",")
        for name in names:
            if name in partitions:
                return name, partitions[name]
        known = ", ".join(sorted(partitions)) or "none"
        raise Trouble(f"partition {asked} is not known to Slurm", f"use one of: {known} (site key partition)")
    for name, fields in partitions.items():
        if fields.get("Default") == "YES":
            return name, fields
    raise Trouble("Slurm has no default partition", "name one in the site file: partition: ...")


def _check_limits(name: str, limits: dict[str, str], config: Config, site: Site) -> None:
    if limits.get("State", "UP") != "UP":
        raise Trouble(f"partition {name} is {limits['State']}", "wait, or use another partition (site file)")
    asked, most = site.job("train").time, limits.get("MaxTime", "UNLIMITED")
    if asked is not None and most not in ("UNLIMITED", "INFINITE") and seconds_of(asked) > seconds_of(most):
        raise Trouble(
            f"the site file asks for {asked}, partition {name} gives at most {most}",
            f'set train.time: "{most}" in the site file; a run goes on over several jobs',
        )
    ranks, per_node = config.train.world_size, site.gpus_per_node
    nodes = site.nodes or -(-ranks // per_node)
    for key in ("MaxNodes", "TotalNodes"):
        limit = limits.get(key, "UNLIMITED")
        if limit.isdigit() and nodes > int(limit):
            raise Trouble(
                f"{ranks} ranks with {per_node} per node need {nodes} nodes, {name} has {key} {limit}",
                "lower train.world_size, or correct gpus_per_node in the site file",
            )
    gpus = re.search(r"gres/gpu=(\d+)", limits.get("TRES", ""))
    if gpus and int(gpus[1]) < ranks and site.gres != "none":
        raise Trouble(
            f"partition {name} has {gpus[1]} GPUs, train.world_size = {ranks}", "lower train.world_size"
        )
