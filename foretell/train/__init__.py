"""Training: THE loop (`loop.py`), and what stands around it (`run.py`)."""

from foretell.train.run import corpus, decide, train

__all__ = ["corpus", "decide", "train"]
