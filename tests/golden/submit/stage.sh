#!/bin/bash

# Parameters
#SBATCH --chdir=/home/me/project
#SBATCH --cpus-per-task=2
#SBATCH --export=PATH,HOME,USER,LANG,HPCRL_BIN,HPCRL_ROOT,HPCRL_MODULES,SSL_CERT_FILE,HTTPS_PROXY,https_proxy,NO_PROXY,no_proxy
#SBATCH --job-name=dist_run_20260102_030405_stage
#SBATCH --mem=8G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/home/me/project/checkpoints/dist_run_20260102_030405/jobs/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=TERM@60
#SBATCH --time=08:00:00

# setup
echo "start $(date -Is) job $SLURM_JOB_ID attempt $((${SLURM_RESTART_COUNT:-0} + 1)) on $SLURM_JOB_NODELIST: hpcrl stage"
trap : TERM
unset SLURM_EXPORT_ENV TRAINING_MODE GPU_COUNT ENVS_PER_GPU
export PATH=/apps/venv/bin:"$PATH"
export PYTHONNOUSERSITE=1
export OMP_NUM_THREADS=2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /home/me/project/checkpoints/dist_run_20260102_030405/jobs/%j_%t_log.out --open-mode=append --kill-on-bad-exit=1 --cpus-per-task=2 /apps/venv/bin/python -u -m submitit.core._submit /home/me/project/checkpoints/dist_run_20260102_030405/jobs


# teardown
code=$?
echo "end $(date -Is) exit code $code"
exit "$code"
