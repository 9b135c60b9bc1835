"""Text from a model: KV cache, sampling, beams, streaming. See docs/generate.md."""

from foretell.generate.answer import answer, source_ids
from foretell.generate.beam import Hypothesis, beam_search
from foretell.generate.completion import generate, stream, tokens_cut

__all__ = ["Hypothesis", "answer", "beam_search", "generate", "source_ids", "stream", "tokens_cut"]
