"""One self-contained HTML page about one or several runs: forecast beside measurement, curves, samples, the data funnel.

Reads run folders and nothing else; never imports torch, so that a report can be written where no run could be. The page
opens without a network: style, script and pictures are inside, and its content security policy forbids everything else.
"""

from foretell.report.page import write

__all__ = ["write"]
