#!/usr/bin/env bash
#SBATCH --job-name=run
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --output=/shared/runs/run-%j.out
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --time=24:00:00
#SBATCH --partition=gpu
# One task a machine starts the processes there; they meet on the first machine.
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
code=0; srun --kill-on-bad-exit=1 foretell train run.toml train.lr=0.01 --name run --out /shared/runs --nproc 8 --resume \
  --nodes "$SLURM_JOB_NUM_NODES" --rendezvous "$first:29400" || code=$?
# 143: asked to stop, and saved. The job is queued again and goes on from there.
if [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
