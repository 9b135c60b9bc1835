"""Text from a model: KV cache, sampling, streaming. See docs/generate.md."""

from foretell.generate.completion import generate, stream, tokens_cut

__all__ = ["generate", "stream", "tokens_cut"]
