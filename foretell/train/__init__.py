"""Training: THE loop (`loop.py`), and what stands around it (`run.py`)."""

from foretell.train.run import decide, train

__all__ = ["decide", "train"]
