"""Model FLOPs, and the peak of known devices, for the share of the peak that is used (MFU)."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from jaxformer.models.config import TransformerConfig
from jaxformer.models.kernel_layout import has_experts

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


def flops_per_step(
    config: TransformerConfig, params: Any, shapes: Mapping[str, tuple[int, ...]], *, frozen: bool = False
) -> float:
    """Floating-point operations of one training step, forward and backward.

    ``6 P`` per token and ``12 L N H S`` for attention over ``S`` keys: 2 per multiply-add, forward once and backward
    twice, ``P`` the parameters that multiply (everything but embedding tables, a tied head counted once). A decoder's
    parameters meet the target's tokens, a masked-language-model head only the hidden ones, an expert the share of
    tokens that use it. Chowdhery et al. 2022, "PaLM", appendix B; causal masking is not subtracted there either.
    The scan of a state-space model, which is no product with parameters, is left out.

    ``shapes`` are those of the batch's arrays by name. Frozen parameters get no gradient, which is ``4 P`` instead; the
    few that do then (LoRA) are left out.
    """
    each = 4.0 if frozen else 6.0
    rows, source = math.prod(shapes["input_ids"][:-1]), shapes["input_ids"][-1]
    target = shapes.get("decoder_input_ids", (source,))[-1]
    predicted = shapes["masked_positions"][-1] if "masked_positions" in shapes else target
    tokens = {"decoder": target, "lm_head": target, "mlm_head": predicted, "generator_head": predicted}
    total, classifies = 0.0, False
    encoder, decoder = config.encoder_side, config.decoder_side
    for name, leaf in flatten_dict(nn.unbox(params), sep="/").items():
        top, last = name.split("/")[0], name.split("/")[-1]
        classifies |= "classifier" in top
        side = {"encoder": encoder, "decoder": decoder}.get(top, config)
        uses = side.num_layers if side.share_layers and "layers" in name.split("/") else 1
        share = config.experts_per_token / (config.num_experts or 1) if has_experts(name) else 1.0
        if last != "embedding":
            total += each * leaf.size * uses * share * tokens.get(top, source)
    if config.tie_embeddings and not classifies:
        total += each * config.vocabulary * config.token_size * predicted
    if config.mixer != "attention":
        return rows * total
    total += 12.0 * encoder.num_heads * encoder.head_width * encoder.num_layers * source**2
    if config.architecture == "encoder_decoder":
        width = 12.0 * decoder.num_heads * decoder.head_width
        total += width * decoder.num_layers * target * (target + source)
    return rows * total
