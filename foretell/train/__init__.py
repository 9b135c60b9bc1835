"""Training: THE loop (`loop.py`), and what stands around it (`run.py`)."""

from foretell.train.run import begin, decide, go_on, prepared, train

__all__ = ["begin", "decide", "go_on", "prepared", "train"]
