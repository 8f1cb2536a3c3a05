#!/bin/bash

# Parameters
#SBATCH --chdir=/home/me/project
#SBATCH --cpus-per-task=2
#SBATCH --export=PATH,HOME,USER,LOGNAME,SHELL,LANG,LC_ALL,MODULEPATH,MODULESHOME,HPCRL_BIN,HPCRL_ROOT,HPCRL_MODULES,HPCRL_REQUEUE,HPCRL_VERIFY,TRAINING_MODE,GPU_COUNT,ENVS_PER_GPU,NO_COLOR,NCCL_DEBUG,NCCL_SOCKET_IFNAME,NCCL_IB_HCA,GLOO_SOCKET_IFNAME,PYTORCH_CUDA_ALLOC_CONF,PYTORCH_ALLOC_CONF
#SBATCH --gres=gpu:8
#SBATCH --job-name=dist_run_20260102_030405
#SBATCH --mem=0
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/home/me/project/checkpoints/dist_run_20260102_030405/jobs/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=24:00:00

# setup
echo "start $(date -Is) job $SLURM_JOB_ID attempt $((${SLURM_RESTART_COUNT:-0} + 1)) on $SLURM_JOB_NODELIST: hpcrl train"
trap : TERM
unset SLURM_EXPORT_ENV TRAINING_MODE GPU_COUNT ENVS_PER_GPU DATABASE_URL "${!SUPABASE_@}" "${!PG@}"
export PATH=/apps/venv/bin:"$PATH"
export PYTHONNOUSERSITE=1
export OMP_NUM_THREADS=2
export HPCRL_RUN=/home/me/project/checkpoints/dist_run_20260102_030405
export HPCRL_REQUEUE=requeue
# A job that would fail in the night fails now. HPCRL_VERIFY=never leaves this out.
if [ "${HPCRL_VERIFY:-}" != never ] && [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then
    code=0
    timeout -k 30 600 /apps/venv/bin/python -m hpcrl verify --quick --config "$HPCRL_RUN/jobs/config.yaml" --run "$HPCRL_RUN" || code=$?
    case $code in
        0) ;;
        124|137) echo "hpcrl verify gave no answer in 10 minutes: training is tried" ;;
        *) echo "end $(date -Is) exit code $code"; exit "$code" ;;
    esac
fi

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /home/me/project/checkpoints/dist_run_20260102_030405/jobs/%j_%t_log.out --open-mode=append --kill-on-bad-exit=1 --cpus-per-task=2 /apps/venv/bin/python -u -m hpcrl.launch.task /home/me/project/checkpoints/dist_run_20260102_030405/jobs


# teardown
code=$?
echo "end $(date -Is) exit code $code"
case $code in
    # Done, failed, a mistake.
    0|1|2) ;;
    # A rank crashed or hung, or all is saved and rank 0 had the job requeued if it could:
    # whether it is to run again, HPCRL_REQUEUE tells.
    *) /apps/venv/bin/python -m hpcrl.launch.again "$code" || true ;;
esac
exit "$code"
