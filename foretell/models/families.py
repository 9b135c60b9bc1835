"""Which file makes the layers of which `model_type`."""

from __future__ import annotations

from collections.abc import Callable

from foretell.config import ModelConfig
from foretell.models import gemma3, gpt2, llama, qwen3
from foretell.models.core import Parts

DECODERS: dict[str, Callable[[ModelConfig, float, str], Parts]] = {
    "gemma3_text": gemma3.parts,
    "gpt2": gpt2.parts,
    "llama": llama.parts,
    "mistral": llama.parts,
    "qwen2": llama.parts,
    "qwen3": qwen3.parts,
}


def parts(c: ModelConfig, dropout: float, kernel: str) -> Parts:
    """Layers and what stands around them, of a resolved config."""
    return DECODERS[c.model_type](c, dropout, kernel)
