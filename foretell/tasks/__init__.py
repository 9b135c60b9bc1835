"""Applications: what a model is for, from examples to answers and scores. See docs/classification.md and docs/qa.md."""
