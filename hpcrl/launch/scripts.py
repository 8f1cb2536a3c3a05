"""The parts of a job script that ``hpcrl submit`` adds to submitit's: options, lines before and after srun.

Everything that comes from outside is quoted for the shell; ``$NAME`` in a site's paths is read in the job.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from hpcrl.config.site import Kind, Modules, Site

EXPORT = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "MODULEPATH", "MODULESHOME", "HPCRL_BIN",
    "HPCRL_ROOT", "HPCRL_MODULES", "HPCRL_REQUEUE", "HPCRL_VERIFY", "TRAINING_MODE", "GPU_COUNT",
    "ENVS_PER_GPU", "NO_COLOR", "NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "GLOO_SOCKET_IFNAME",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
)  # fmt: skip
"""What a training or evaluation job gets of the submitter's environment: Slurm writes it to disk, so that no
secret may be in it. The same as in slurm/train.sbatch."""
STAGE_EXPORT = (
    "PATH", "HOME", "USER", "LANG", "HPCRL_BIN", "HPCRL_ROOT", "HPCRL_MODULES", "SSL_CERT_FILE",
    "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy",
)  # fmt: skip
"""The same for staging, which needs the way out of the cluster; as in slurm/stage.sbatch."""
# Evaluation's table needs more than the 80 columns that a log counts as.
_COLUMNS = 120
_MODULE_FILES = (
    '"${MODULESHOME:-}/init/bash"', "/etc/profile.d/lmod.sh", "/etc/profile.d/z00_lmod.sh",
    "/etc/profile.d/modules.sh",
)  # fmt: skip


def in_job(path: str) -> str:
    """A site's path as a word of the script: ``~`` is home, $NAME is read there (unset: an error)."""
    parts = re.split(r"\$(?:\{(\w+)\}|(\w+))", os.path.expanduser(path))
    words = []
    for index in range(0, len(parts), 3):
        words.append(shlex.quote(parts[index]) if parts[index] else "")
        if index + 2 < len(parts):
            words.append(f'"${{{parts[index + 1] or parts[index + 2]}:?}}"')
    return "".join(words)


def setup(kind: Kind, site: Site, run: Path, python: Path, exports: dict[str, str]) -> list[str]:
    """Lines before srun. ``exports``: further variables of this job.

    The trap keeps the script until the ranks have saved: scancel's TERM goes to it, too.
    """
    threads = site.job(kind).cpus_per_task
    # Frozen in the run's config.yaml at submission; the environment would win over it.
    frozen = "TRAINING_MODE GPU_COUNT ENVS_PER_GPU"
    secrets = "" if kind == "stage" else ' DATABASE_URL "${!SUPABASE_@}" "${!PG@}"'
    policy = {"HPCRL_RUN": str(run), "HPCRL_REQUEUE": site.requeue} if kind == "train" else {}
    given = {"PYTHONNOUSERSITE": "1", "OMP_NUM_THREADS": str(threads), **policy, **exports}
    if kind == "evaluate":
        given["COLUMNS"] = str(_COLUMNS)
    lines = [
        f'echo "start $(date -Is) job $SLURM_JOB_ID attempt $((${{SLURM_RESTART_COUNT:-0}} + 1))'
        f' on $SLURM_JOB_NODELIST: hpcrl {kind}"',
        "trap : TERM",
        f"unset SLURM_EXPORT_ENV {frozen}{secrets}",
        *_modules(site.modules, python),
        f'export PATH={shlex.quote(str(python.parent))}:"$PATH"',
        *(f"export {name}={shlex.quote(value)}" for name, value in given.items()),
    ]
    if site.scratch is not None:
        lines.append(f"export SLURM_TMPDIR={in_job(site.scratch)}")
    return lines


def verify_first(python: Path, *options: str) -> list[str]:
    """Lines that come last before srun of training: as slurm/prelude.sh has it, of the run $HPCRL_RUN."""
    of_the_run = '--config "$HPCRL_RUN/jobs/config.yaml" --run "$HPCRL_RUN"'
    command = " ".join((shlex.quote(str(python)), "-m hpcrl verify --quick", *options, of_the_run))
    return [
        "# A job that would fail in the night fails now. HPCRL_VERIFY=never leaves this out.",
        'if [ "${HPCRL_VERIFY:-}" != never ] && [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then',
        "    code=0",
        f"    timeout -k 30 600 {command} || code=$?",
        "    case $code in",
        "        0) ;;",
        '        124|137) echo "hpcrl verify gave no answer in 10 minutes: training is tried" ;;',
        '        *) echo "end $(date -Is) exit code $code"; exit "$code" ;;',
        "    esac",
        "fi",
    ]


def _modules(modules: Modules, python: Path) -> list[str]:
    if not modules.load:
        return []
    first = [in_job(modules.init)] if modules.init else []
    lines = [
        "# A batch shell has no `module` before the site's init file was read.",
        f"for init in {' '.join((*first, *_MODULE_FILES))}; do",
        '    if ! type module >/dev/null 2>&1 && [ -r "$init" ]; then . "$init"; fi',
        "done",
        "if type module >/dev/null 2>&1; then",
        *(f"    module use {in_job(folder)}" for folder in modules.use),
    ]
    for name in modules.load:
        said = f"error: module {name} cannot be loaded; see 'module spider {name}'"
        lines.append(f"    module load {shlex.quote(name)} || {{ echo {shlex.quote(said)} >&2; exit 2; }}")
    note = shlex.quote(f", which has no module system: going on with {python}")
    return [*lines, "else", f'    echo "note: the job is on $(hostname)"{note}', "fi"]


def teardown(kind: Kind, python: Path) -> list[str]:
    """Lines after srun: its exit code is the job's."""
    lines = ["code=$?", 'echo "end $(date -Is) exit code $code"']
    if kind == "train":
        lines += [
            "case $code in",
            "    # Done, failed, a mistake.",
            "    0|1|2) ;;",
            "    # A rank crashed or hung, or all is saved and rank 0 had the job requeued if it could:",
            "    # whether it is to run again, HPCRL_REQUEUE tells.",
            f'    *) {shlex.quote(str(python))} -m hpcrl.launch.again "$code" || true ;;',
            "esac",
        ]
    return [*lines, 'exit "$code"']
