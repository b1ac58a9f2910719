"""LongT5 (Guo et al. 2022): T5 of version 1.1 whose encoder attends to a neighbourhood, and to sums of all blocks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxformer.families import t5
from jaxformer.families.format import Family, Name
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError

# LongT5-tglobal-base. It was pre-trained to fill in the sentences left out, on texts of 4,096 tokens.
DEFAULTS = {
    **t5.T5_V1_1,
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "intermediate_size": 2048,
    "max_length": 4096,
    "encoder_window": 128,
    "summary_size": 16,
}


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """T5's keys, and what a token of the encoder sees."""
    kind = hf.get("encoder_attention_type", "local")
    if kind not in ("local", "transient-global"):
        raise UserError(f"config.json has encoder_attention_type {kind!r}, expected local or transient-global")
    size = hf.get("global_block_size", 16) if kind == "transient-global" else None
    return {**t5.read(hf), "encoder_window": hf.get("local_radius", 127) + 1, "summary_size": size}


def write(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read``."""
    kind = "local" if config.summary_size is None else "transient-global"
    keys = {"local_radius": (config.encoder_window or 1) - 1, "encoder_attention_type": kind}
    if config.summary_size is not None:
        keys["global_block_size"] = config.summary_size
    return {**t5.write(config), **keys}


def names(config: TransformerConfig) -> list[Name]:
    """T5's names; the encoder's attention is called by its kind."""
    kind = "LocalSelfAttention" if config.summary_size is None else "TransientGlobalSelfAttention"
    table = [
        name._replace(theirs=name.theirs.replace("SelfAttention", kind)) if name.theirs.startswith("encoder.") else name
        for name in t5.names(config)
    ]
    if config.summary_size is not None:
        block = f"encoder.block.{{}}.layer.0.{kind}."
        bias = block.format(0) + "global_relative_attention_bias.weight"
        table += [
            Name("encoder/summary_bias/embedding", bias),
            Name("encoder/layers/attention/summary_norm/scale", f"{block}global_input_layer_norm.weight"),
        ]
    return table


_BASE = t5.format_of("longt5", "LongT5")
FORMAT = replace(
    _BASE,
    body=names,
    heads={kind: _BASE.heads[kind] for kind in ("body", "text_encoding", "seq2seq_lm")},
    read=read,
    write=write,
)
FAMILY = Family("longt5", DEFAULTS, FORMAT, "span_corruption")
