"""CLIP's text encoder (Radford et al. 2021): GPT-2's blocks, whose state of the end token stands for the text."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.format import SIZES, Family, Format, Head, Key, activation, rows

# The shape is that of CLIP ViT-B/32's text encoder.
DEFAULTS = {
    "hidden_size": 512,
    "num_layers": 12,
    "num_heads": 8,
    "intermediate_size": 2048,
    "max_length": 77,
    "activation": "gelu_sigmoid",
    "pooling": "end",
    "projection_size": 512,
}
KEYS = (
    *SIZES,
    Key("norm_epsilon", "layer_norm_eps", 1e-5),
    activation("hidden_act"),
    Key("attention_dropout", "attention_dropout", 0.0),
    Key("projection_size", "projection_dim", 512),
)
BLOCK = {
    "attention_norm": "layer_norm1",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.out_proj",
    "feed_forward_norm": "layer_norm2",
    "feed_forward/up": "mlp.fc1",
    "feed_forward/down": "mlp.fc2",
}
TABLE = {
    "embeddings/token": "embeddings.token_embedding",
    "embeddings/position": "embeddings.position_embedding",
    "final_norm": "final_layer_norm",
}


def text_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The text encoder's part of a ``config.json`` of a whole CLIP."""
    text = {**(hf.get("text_config_dict") or {}), **(hf.get("text_config") or {})}
    return {**text, "projection_dim": hf.get("projection_dim", 512), "model_type": "clip_text_model"}


FORMAT = Format(
    "clip_text_model",
    KEYS,
    [*rows(TABLE), *rows(BLOCK, "layers/", "encoder.layers.{}.")],
    {
        "body": Head("CLIPTextModel", prefix="text_model."),
        "text_projection": Head("CLIPTextModelWithProjection", rows({"text_projection": "text_projection"})),
    },
    prefix="text_model.",
    # What else a file of a whole CLIP holds.
    ignored=r"position_ids$|^vision_model\.|^visual_projection\.|^logit_scale$|^text_projection\.",
)
FAMILY = Family("clip_text", DEFAULTS, FORMAT)
