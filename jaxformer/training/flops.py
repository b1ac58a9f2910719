"""Model FLOPs, and the peak of known devices, for the share of the peak that is used (MFU)."""

import jax

from jaxformer.models.config import TransformerConfig
from jaxformer.training.state import count_parameters

# Dense bfloat16 peak of one device, FLOP/s, by the vendor's data sheet.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak of a device in bfloat16, FLOP/s; None if it is not known (a CPU, say)."""
    kind = device.device_kind
    if kind in PEAK_FLOPS:
        return PEAK_FLOPS[kind]
    # GPU names carry the variant behind the model: "NVIDIA H100 80GB HBM3".
    return next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(f"{name} ")), None)


def flops_per_token(config: TransformerConfig, params: object, sequence_length: int) -> float:
    """Floating-point operations of one training step per token, forward and backward.

    ``6 P + 12 L N H T``: 2 per multiply-add, forward once and backward twice, ``P`` the parameters that multiply
    (everything but embedding tables and the tied head counted once), and the two attention products over all ``T``
    keys. Chowdhery et al. 2022, "PaLM", appendix B; causal masking is not subtracted there either.
    """
    total = count_parameters(params)
    tables = config.vocabulary * config.hidden_size
    if config.positions == "learned":
        total -= config.max_length * config.hidden_size
    if not config.tie_embeddings:
        total -= tables
    return 6.0 * total + 12.0 * config.num_layers * config.num_heads * config.head_width * sequence_length
