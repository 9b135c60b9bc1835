#!/usr/bin/env bash
# On each of 16 machines: FIRST=host-of-the-first bash this-script
# Once before, on any of them: foretell train run.toml train.lr=0.01 --name run --out /shared/runs --nproc 128 --resume --begin-only
set -euo pipefail

exec env TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 \
  torchrun --nnodes 16 --nproc-per-node 8 --max-restarts 3 \
  --rdzv-backend c10d --rdzv-endpoint "${FIRST:?the first machine}:29400" \
  --rdzv-id run -m foretell.cli train --name run --out /shared/runs
