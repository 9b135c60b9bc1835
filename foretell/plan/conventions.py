"""Published conventions of counting FLOPs and activations, each under its own name.

They differ, and a figure without its convention says little: 6N + 12 L D T is a sixth below OLMo's count at 190M
parameters. What this project counts itself is in `flops.py`; here are the counts that others print, so that their
tables can be compared.
"""

from __future__ import annotations


def kaplan_flops_per_token(parameters: float) -> float:
    """6 N: two of the forward and four of the backward pass a parameter (Kaplan et al., 2020)."""
    return 6.0 * parameters


def palm_flops_per_token(parameters: float, layers: int, heads: int, head_dim: int, context: int) -> float:
    """6 N + 12 L H Q T: with full attention (Chowdhery et al., 2022, appendix B); llm-foundry's MFU uses it too."""
    return 6.0 * parameters + 12.0 * layers * heads * head_dim * context


def olmo_flops_per_token(parameters: int, layers: int, hidden: int, context: int, vocab: int) -> int:
    """6 N + 12 L D T + 4 V D of the OLMo ladder's tables, whose N holds one V x D table already; V is padded."""
    return 6 * parameters + 12 * layers * hidden * context + 4 * vocab * hidden


def megatron_step_flops(
    batch: int, context: int, layers: int, hidden: int, vocab: int, recompute: bool = True
) -> float:
    """96 B s L h^2 (1 + s/6h + V/16Lh) of an iteration with full recomputation (Narayanan et al., 2021, equation 3).

    Without recomputation 72 B s L h^2 (1 + s/6h + V/12Lh). Full attention; GELU of 4 h.
    """
    factor, head = (96.0, 16.0) if recompute else (72.0, 12.0)
    linear = factor * batch * context * layers * hidden**2
    return linear * (1 + context / (6 * hidden) + vocab / (head * layers * hidden))


def mfu(flops_per_token: float, tokens_per_second: float, devices: int, peak_flops_per_second: float) -> float:
    """Model FLOPs utilisation (Chowdhery et al., 2022): recomputation does not count."""
    return flops_per_token * tokens_per_second / (devices * peak_flops_per_second)


def korthikanti_activation_bytes(
    batch: int,
    context: int,
    hidden: int,
    heads: int,
    tp: int = 1,
    recompute: str = "none",
    sequence_parallel: bool = False,
) -> float:
    """Bytes of one GPT layer's activations in 16 bits with dropout (Korthikanti et al., 2022, table 2).

    recompute: `none`, `selective` (the T x T part formed again) or `full` (the layer's input kept alone).
    """
    sbh = float(context * batch * hidden)
    if recompute == "full":
        return 2 * sbh / (tp if sequence_parallel else 1)
    scores = 0.0 if recompute == "selective" else 5.0 * heads * context / hidden
    if sequence_parallel:
        return sbh / tp * (34 + scores)
    return sbh * (10 + (24 + scores) / tp)


def korthikanti_first_stage_bytes(per_layer: float, layers: int, pp: int, chunks: int = 1) -> float:
    """Activations of the first pipeline stage: all L layers' worth, and (1 + (p-1)/(p m)) of it where interleaved."""
    return per_layer * layers * (1 + (pp - 1) / (pp * chunks) if chunks > 1 else 1.0)


def megatron_state_bytes(parameters: float, tp: int, pp: int) -> float:
    """18 bytes a parameter: 16-bit weights, gradients in 32 bits, master weights and two moments of Adam."""
    return 18.0 * parameters / (tp * pp)
