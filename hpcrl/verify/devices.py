"""GPU, driver, CUDA, NCCL and bf16, as training would find them on this node."""

from __future__ import annotations

import os

import torch

from hpcrl.config.root import Config
from hpcrl.monitor.gpu import Gpu, NoGpu
from hpcrl.verify.finding import Doubt, Trouble


def check_gpu(config: Config) -> str:
    """As many as this node's ranks need; none is a warning unless the config asks for cuda."""
    wanted = config.engine.device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu":
        return f"engine.device = cpu: {count} GPUs are left alone"
    if not count:
        cause = "torch sees no GPU here" + ("" if torch.version.cuda else " (its build has no CUDA)")
        granted = os.environ.get("SLURM_GPUS_ON_NODE") or os.environ.get("SLURM_JOB_GPUS")
        if wanted == "auto" and granted:
            raise Trouble(
                f"{cause}, though Slurm has granted them (SLURM_GPUS_ON_NODE = {granted})",
                "load the CUDA module, or install torch for CUDA; to use CPUs: --set engine.device=cpu",
            )
        if wanted == "cuda":
            raise Trouble(
                cause + ", and engine.device = cuda",
                "ask Slurm for GPUs (--gres=gpu:N), load the CUDA module, or install torch for CUDA",
            )
        raise Doubt(cause, "training runs on the CPU; on a node with GPUs check nvidia-smi and torch's build")
    names = sorted({torch.cuda.get_device_name(index) for index in range(count)})
    said = f"{count} x {', '.join(names)}"
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES") or 1)
    if count * nodes < config.train.world_size:
        raise Doubt(
            f"{said}, but train.world_size = {config.train.world_size}",
            f"on one node: --set train.world_size={count}; over several nodes each has its own",
        )
    return said


def check_cuda(config: Config) -> str:
    """Driver, CUDA, NCCL and NVML. Nothing to check without a GPU."""
    import torch.distributed as dist

    if config.engine.device == "cpu" or not torch.cuda.is_available():
        return "no GPU is used: nothing to check"
    try:
        free, total = torch.cuda.mem_get_info()
        torch.ones(8, device="cuda").sum().item()
    except RuntimeError as error:
        raise Trouble(
            f"a kernel fails: {str(error).splitlines()[0][:200]}",
            "the driver is older than torch's CUDA, or the GPU is in exclusive use: see nvidia-smi",
        ) from None
    if config.train.world_size > 1 and not dist.is_nccl_available():
        raise Trouble(
            "torch has no NCCL", "install torch's CUDA build: pip install torch with its CUDA index"
        )
    try:
        Gpu(torch.device("cuda", 0)).sample()
    except NoGpu as reason:
        raise Doubt(str(reason), "training works; temperature and utilisation are not shown") from None
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return (
        f"CUDA {torch.version.cuda}, NCCL {nccl}; {free / 2**30:.1f} of {total / 2**30:.1f} GiB free on GPU 0"
    )


def check_bf16(config: Config) -> str:
    """A product in bf16 is right to its precision."""
    if config.engine.precision != "bf16":
        return f"engine.precision = {config.engine.precision}: bf16 is not used"
    cuda = config.engine.device != "cpu" and torch.cuda.is_available()
    if cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise Trouble(
            f"{torch.cuda.get_device_name(0)} has no bf16",
            "use engine.precision: fp32, or a GPU of compute capability 8.0 or newer",
        )
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=generator) for _ in range(2))
    device = "cuda" if cuda else "cpu"
    product = (a.to(device, torch.bfloat16) @ b.to(device, torch.bfloat16)).float().cpu()
    error = float((product - a @ b).abs().max() / (a @ b).abs().max())
    if not error < 0.02:
        raise Trouble(f"a product in bf16 is off by {error:.2g}", "use engine.precision: fp32 on this device")
    return f"a product of 64 x 64 is right to {error:.1e}"
