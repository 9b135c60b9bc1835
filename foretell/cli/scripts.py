"""Scripts that start a run on a cluster, to be read, kept and changed.

Each begins the run once and starts the same command on every machine. The run folder lies where all machines see it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

PORT = 29400
# Seconds before the time limit at which Slurm asks the run to save: all ranks have saved within ten.
_WARNING_SECONDS = 120


@dataclass(frozen=True)
class Launch:
    """A run for a cluster: its config and overrides, its folder, machines, processes on each."""

    words: list[str]
    name: str
    out: str
    nodes: int
    processes: int
    time: str | None = None
    partition: str | None = None

    @property
    def total(self) -> int:
        """Processes on all machines."""
        return self.nodes * self.processes

    def command(self, processes: int) -> str:
        """`foretell train` of this run in so many processes."""
        named = ["--name", self.name, "--out", self.out, "--nproc", str(processes), "--resume"]
        return shlex.join(["foretell", "train", *self.words, *named])


def slurm(launch: Launch) -> str:
    """For `sbatch`. A job that meets its time limit, or loses a machine, has saved and is queued again."""
    options = [
        f"--job-name={launch.name}",
        f"--nodes={launch.nodes}",
        "--ntasks-per-node=1",
        "--exclusive",
        f"--output={launch.out}/{launch.name}-%j.out",
        f"--signal=TERM@{_WARNING_SECONDS}",
        "--requeue",
        *([f"--time={launch.time}"] if launch.time else []),
        *([f"--partition={launch.partition}"] if launch.partition else []),
    ]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"#SBATCH {option}" for option in options),
            "# One task a machine starts the processes there; they meet on the first machine.",
            "set -euo pipefail",
            "",
            'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f"code=0; srun --kill-on-bad-exit=1 {launch.command(launch.processes)} \\",
            f'  --nodes "$SLURM_JOB_NUM_NODES" --rendezvous "$first:{PORT}" || code=$?',
            "# 143: asked to stop, and saved. The job is queued again and goes on from there.",
            'if [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            'exit "$code"',
            "",
        ]
    )


def torchrun(launch: Launch) -> str:
    """For machines without a scheduler: what to type on each of them."""
    work = shlex.join(["foretell.cli", "train", "--name", launch.name, "--out", launch.out])
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# On each of {launch.nodes} machines: FIRST=host-of-the-first bash this-script",
            f"# Once before, on any of them: {launch.command(launch.total)} --begin-only",
            "set -euo pipefail",
            "",
            "exec env TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 \\",
            f"  torchrun --nnodes {launch.nodes} --nproc-per-node {launch.processes} --max-restarts 3 \\",
            f'  --rdzv-backend c10d --rdzv-endpoint "${{FIRST:?the first machine}}:{PORT}" \\',
            f"  --rdzv-id {shlex.quote(launch.name)} -m {work}",
            "",
        ]
    )


def ray(launch: Launch) -> str:
    """For a Ray cluster that runs already: begins the run, then submits the job that trains it."""
    run = shlex.quote(f"{launch.out}/{launch.name}")
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            "# RAY_ADDRESS names the cluster, such as http://head:8265.",
            "# Its machines see the folder and have foretell[ray].",
            "set -euo pipefail",
            "",
            f"{launch.command(launch.total)} --begin-only",
            f'exec ray job submit --working-dir "$PWD" -- python -m foretell.train.ray {run} --workers {launch.total}',
            "",
        ]
    )


SCRIPTS = {"slurm": slurm, "torchrun": torchrun, "ray": ray}
