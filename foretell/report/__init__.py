"""One self-contained HTML page about one or several runs: forecast beside measurement, curves, samples, the funnel.

Reads run folders and nothing else; never imports torch, so that a report can be written where no run could be. The page
opens without a network: style, script and pictures are inside, and its content security policy forbids everything else.
"""

from foretell.report.page import closing, write, write_map

__all__ = ["closing", "write", "write_map"]
