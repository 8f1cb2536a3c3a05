"""DeepSpeed's dictionary, computed from our config; nobody writes it by hand. Torch-free."""

from __future__ import annotations

from typing import Any

from hpcrl.config.engine import EngineConfig


def ds_config(engine: EngineConfig, max_grad_norm: float) -> dict[str, Any]:
    """Batch sizes are 1: DeepSpeed only checks them against each other, the learner knows the real ones."""
    zero: dict[str, Any] = {
        "stage": engine.zero_stage,
        # With compiled modules overlapping gives NaN (DeepSpeed issue 8061); at our sizes it gains nothing.
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_bucket_size": engine.bucket_elements,
        "allgather_bucket_size": engine.bucket_elements,
    }
    if engine.zero_stage == 3:
        # Its own linear layer computes in another order: stage 3 would differ from stage 1.
        zero["memory_efficient_linear"] = False
        zero["stage3_prefetch_bucket_size"] = engine.bucket_elements
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Stage 0 clips in the engine, after the check for finite gradients that DeepSpeed lacks there.
        "gradient_clipping": max_grad_norm if engine.zero_stage else 0.0,
        "bf16": {"enabled": engine.precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
