"""`python -m foretell.cli`: what `runtime.tune_process` starts again."""

from foretell.cli import main

main()
