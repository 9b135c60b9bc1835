"""A run that `foretell train --begin-only` has begun, trained by Ray Train: the same worker, other processes.

    python -m foretell.train.ray RUN --workers N [--max-restarts 3]

Ray starts the workers, joins them in a process group and starts all anew when one dies. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path
from typing import Any

from foretell import runtime
from foretell.data import open_data
from foretell.distributed.mesh import PATIENCE
from foretell.errors import MissingExtra
from foretell.train.run import go_on, prepared


def train(run: Path, workers: int, max_restarts: int = 3) -> None:
    """Train the begun run `run` in so many workers of the Ray cluster, or of one on this machine."""
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError:
        raise MissingExtra("Ray Train", "ray") from None
    on_gpu = runtime.device().type == "cuda"
    trainer = TorchTrainer(
        _work,
        train_loop_config={"run": str(run.absolute())},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=int(PATIENCE / timedelta(seconds=1))),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpu),
        run_config=RunConfig(name=run.name, failure_config=FailureConfig(max_failures=max_restarts)),
    )
    trainer.fit()


def _work(config: dict[str, Any]) -> None:
    go_on(Path(config["run"]), open_data(prepared(Path(config["run"]))), resume=True)


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--max-restarts", type=int, default=3)
    options = parser.parse_args()
    train(options.run, options.workers, options.max_restarts)


if __name__ == "__main__":
    main()
