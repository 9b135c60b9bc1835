#!/usr/bin/env bash
# RAY_ADDRESS names the cluster, such as http://head:8265.
# Its machines see the folder and have foretell[ray].
set -euo pipefail

foretell train run.toml train.lr=0.01 --name run --out /shared/runs --nproc 128 --resume --begin-only
exec ray job submit --working-dir "$PWD" -- python -m foretell.train.ray /shared/runs/run --workers 128
