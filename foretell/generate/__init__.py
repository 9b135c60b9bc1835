"""Text from a model: KV cache, sampling, streaming. See docs/generate.md."""

from foretell.generate.completion import generate, stream

__all__ = ["generate", "stream"]
