"""The engine against hand-written AdamW, and its snapshot bit for bit: see engine_cases.py for each case."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpcrl.config.engine import EngineConfig
from hpcrl.engine.ds_config import ds_config

CASES = Path(__file__).with_name("engine_cases.py")


def test_the_default_stage_and_precision_hold_on_one_rank(tmp_path: Path, run_on_ranks) -> None:
    [done] = run_on_ranks(CASES, tmp_path, "quick", ranks=1)
    assert done.stdout.strip() == "all held", done.stdout + done.stderr


@pytest.mark.slow
def test_every_stage_and_precision_holds_on_one_and_two_ranks_and_between_them(
    tmp_path: Path, run_on_ranks
) -> None:
    """AdamW by hand, exact continuation, skipped steps, refresh; snapshots from 1 to 2 ranks and back."""
    for ranks, step in ((1, "full"), (2, "full"), (1, "verify")):
        for done in run_on_ranks(CASES, tmp_path, step, ranks=ranks, timeout=240):
            assert done.stdout.strip() == "all held", done.stdout + done.stderr
            assert "deprecated" not in done.stderr, done.stderr


def test_bf16_at_stage_0_is_refused_in_the_config() -> None:
    with pytest.raises(ValueError, match="zero_stage = 0"):
        EngineConfig(precision="bf16", zero_stage=0)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeeds_dictionary_follows_the_config(stage) -> None:
    config = ds_config(EngineConfig(precision="fp32", zero_stage=stage, bucket_elements=1234), 0.7)
    zero = config["zero_optimization"]
    assert zero["stage"] == stage and zero["reduce_bucket_size"] == 1234 and zero["overlap_comm"] is False
    assert config["gradient_clipping"] == (0.7 if stage else 0.0)
    assert zero.get("memory_efficient_linear") == (False if stage == 3 else None)
    assert config["bf16"] == {"enabled": False}


def test_importing_the_engine_does_not_import_deepspeed() -> None:
    code = "import sys, hpcrl.engine.engine; assert 'deepspeed' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_release_of_deepspeed_is_refused_with_the_fix(monkeypatch) -> None:
    import types

    from hpcrl.engine import snapshot
    from hpcrl.types import HpcrlError

    monkeypatch.setitem(sys.modules, "deepspeed", types.SimpleNamespace(__version__="0.20.0"))
    with pytest.raises(HpcrlError, match=r"0\.20\.0.*pip install deepspeed==0\.19\.8"):
        snapshot.check_version()
