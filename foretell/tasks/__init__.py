"""Tasks: examples in, prompts and training records out, answers and scores. See docs/tasks.md.

examples.py   files of examples            prompts.py   how a decoder is asked
checks.py     what is wrong with them      tuned.py     a model with its task, and its answers
records.py    what a run learns from       scores.py    metrics of answers, and of simple rules
recipe.py     what a task decides          card.py      task.json beside a model
classification.py, extractive.py: what an encoder with a head says of texts, and of questions
"""
