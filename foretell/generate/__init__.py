"""Text from a model: KV cache, sampling, streaming. See docs/generate.md."""

from foretell.generate.answer import answer, source_ids
from foretell.generate.completion import generate, stream, tokens_cut

__all__ = ["answer", "generate", "source_ids", "stream", "tokens_cut"]
