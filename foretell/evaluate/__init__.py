"""How well a model predicts text: perplexity, bits per byte, accuracy, with intervals. See docs/evaluate.md."""

from foretell.evaluate.compared import answers_of, render_comparison, write_answers
from foretell.evaluate.compared import compare as compare_answers
from foretell.evaluate.evaluation import evaluate, evaluate_split
from foretell.evaluate.objective import evaluate_objective, evaluate_texts
from foretell.evaluate.result import render
from foretell.evaluate.task import evaluate_task
from foretell.evaluate.task import keep as keep_scores
from foretell.evaluate.task import render as render_task

__all__ = [
    "answers_of",
    "compare_answers",
    "evaluate",
    "evaluate_objective",
    "evaluate_split",
    "evaluate_task",
    "evaluate_texts",
    "keep_scores",
    "render",
    "render_comparison",
    "render_task",
    "write_answers",
]
