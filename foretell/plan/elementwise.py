"""What a layer does beside its products and its attention: numbers read and written, operators called.

Counted on the built layers of every family, forward and backward, in float32 without dropout (a test does it again).
torch's RMSNorm on a CPU is some twenty operators, a LayerNorm two. Of a mixture of experts only what is dense counts.
"""

from __future__ import annotations

from foretell.plan.architecture import Layer

FLOAT = 4
# Numbers that pass and operators of: a norm over so many numbers, by kind; what rotates so many; residuals and the
# gradients that meet there; the activation of so many numbers, gated or plain.
RMS_NORM, LAYER_NORM, ROTATION, RESIDUAL, GATED, PLAIN = (31, 20), (5, 2), (20, 20), (18, 6), (14, 5), (5, 2)
# Operators of a layer of Qwen3, whose calls were calibrated as 100 (`parts.py`) and 110 (`time.py`).
OF_QWEN3 = 112


def bytes_per_token(layer: Layer, hidden: int) -> int:
    """Bytes per token that these operators of one layer read and write, in float32."""
    rotated = sum((a.heads + a.kv_heads) * a.qk for a in layer.attentions)
    norm = (RMS_NORM if layer.rms else LAYER_NORM)[0]
    total = (RESIDUAL[0] + (3 if layer.gated else 0) + norm * layer.norms) * hidden
    total += (norm * layer.norms_of_heads + ROTATION[0] * layer.rotary) * rotated
    total += (GATED if layer.gated else PLAIN)[0] * layer.inner
    return FLOAT * (total + sum(m.rows for m in layer.matrices if m.bias))


def operators(layer: Layer) -> int:
    """How many they are."""
    norm = (RMS_NORM if layer.rms else LAYER_NORM)[1]
    total = RESIDUAL[1] + (1 if layer.gated else 0) + norm * (layer.norms + 2 * layer.norms_of_heads)
    total += ROTATION[1] * layer.rotary + (GATED if layer.gated else PLAIN)[1]
    return total + sum(m.bias for m in layer.matrices)
