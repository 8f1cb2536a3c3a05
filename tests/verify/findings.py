"""What the tests of hpcrl verify share."""

from __future__ import annotations

from hpcrl.verify.finding import Finding

SMALL = (
    "train.world_size=1", "engine.device=cpu", "env.envs_per_gpu=2", "policy.d_model=32", "policy.layers=1",
    "policy.heads=2", "policy.window=8", "learn.rollout=32", "learn.sequence_length=16",
    "learn.batch_size=32",
)  # fmt: skip


def is_fail(finding: Finding, cause: str, fix: str) -> None:
    assert finding.status == "fail" and cause in finding.found and fix in finding.fix, finding


def is_warn(finding: Finding, cause: str, fix: str) -> None:
    assert finding.status == "warn" and cause in finding.found and fix in finding.fix, finding


def is_pass(finding: Finding) -> None:
    assert finding.status == "pass" and finding.fix == "", finding
