"""How well a model predicts text: perplexity, bits per byte, accuracy, with intervals. See docs/evaluate.md."""

from foretell.evaluate.evaluation import evaluate, evaluate_split
from foretell.evaluate.objective import evaluate_objective, evaluate_texts
from foretell.evaluate.result import render

__all__ = ["evaluate", "evaluate_objective", "evaluate_split", "evaluate_texts", "render"]
