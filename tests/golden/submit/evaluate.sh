#!/bin/bash

# Parameters
#SBATCH --chdir=/home/me/project
#SBATCH --cpus-per-task=2
#SBATCH --dependency=afterok:41
#SBATCH --export=PATH,HOME,USER,LOGNAME,SHELL,LANG,LC_ALL,MODULEPATH,MODULESHOME,HPCRL_BIN,HPCRL_ROOT,HPCRL_MODULES,HPCRL_REQUEUE,HPCRL_VERIFY,TRAINING_MODE,GPU_COUNT,ENVS_PER_GPU,NO_COLOR,NCCL_DEBUG,NCCL_SOCKET_IFNAME,NCCL_IB_HCA,GLOO_SOCKET_IFNAME,PYTORCH_CUDA_ALLOC_CONF,PYTORCH_ALLOC_CONF
#SBATCH --gres=gpu:1
#SBATCH --job-name=dist_run_20260102_030405_evaluate
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=8G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/home/me/project/checkpoints/dist_run_20260102_030405/jobs/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=TERM@60
#SBATCH --time=02:00:00

# setup
echo "start $(date -Is) job $SLURM_JOB_ID attempt $((${SLURM_RESTART_COUNT:-0} + 1)) on $SLURM_JOB_NODELIST: hpcrl evaluate"
trap : TERM
unset SLURM_EXPORT_ENV TRAINING_MODE GPU_COUNT ENVS_PER_GPU DATABASE_URL "${!SUPABASE_@}" "${!PG@}"
export PATH=/apps/venv/bin:"$PATH"
export PYTHONNOUSERSITE=1
export OMP_NUM_THREADS=2
export COLUMNS=120

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /home/me/project/checkpoints/dist_run_20260102_030405/jobs/%j_%t_log.out --open-mode=append --kill-on-bad-exit=1 --cpus-per-task=2 /apps/venv/bin/python -u -m submitit.core._submit /home/me/project/checkpoints/dist_run_20260102_030405/jobs


# teardown
code=$?
echo "end $(date -Is) exit code $code"
exit "$code"
