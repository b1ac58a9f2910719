"""ModernBERT's decoder (Weller et al. 2025, "Seq vs Seq", Ettin): its blocks, each token seeing those before it."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families import modernbert
from jaxformer.families.format import (
    Family,
    Format,
    Head,
    Key,
    Name,
    read_activation,
    require,
    rows,
)
from jaxformer.families.windows import layer_types, read_layer_types
from jaxformer.models.config import TransformerConfig

# The shape is that of Ettin's decoder of 150 million parameters.
DEFAULTS = {
    **modernbert.DEFAULTS,
    "architecture": "decoder",
    "window": 64,
    "pooling": "last",
    "head_transform": True,
}
KEYS = (
    *(key for key in modernbert.KEYS if key.ours not in ("window", "pooling")),
    # The published number is of both sides.
    Key("window", "local_attention", read=lambda both: both // 2, write=lambda side: side * 2),
)


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """As ModernBERT's; one base for all rotary positions in the published files."""
    rope = hf.get("rope_parameters") or {}
    full, local = rope.get("full_attention") or {}, rope.get("sliding_attention") or {}
    every = hf.get("global_attn_every_n_layers") or 3
    old = ["sliding_attention" if i % every else "full_attention" for i in range(hf["num_hidden_layers"])]
    require(hf, classifier_activation=hf["hidden_activation"], rope_scaling=None)
    return {
        "pooler": read_activation(hf["hidden_activation"]),
        "rope_theta": full.get("rope_theta") or hf.get("global_rope_theta", 160_000.0),
        "local_rope_theta": local.get("rope_theta") or hf.get("local_rope_theta", 10_000.0),
        **read_layer_types(hf.get("layer_types") or old),
    }


def write(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read``."""
    keys = modernbert.write(config)
    del keys["global_attn_every_n_layers"]
    return {**keys, "layer_types": layer_types(config)}


PROJECTIONS = {f"attention/{name}": f"attn.{name[0]}_proj" for name in ("query", "key", "value")}
BLOCK = {ours: theirs for ours, theirs in modernbert.BLOCK.items() if "+key+" not in ours} | PROJECTIONS
LM = [
    *rows({"mlm_head/dense": "lm_head.dense", "mlm_head/norm": "lm_head.norm"}),
    Name("lm_head/kernel", "decoder.weight", transposed=True),
    Name("mlm_head/bias", "decoder.bias"),
]
FORMAT = Format(
    "modernbert-decoder",
    KEYS,
    [*rows(modernbert.TABLE), modernbert.FIRST_NORM, *rows(BLOCK, "layers/", "layers.{}.")],
    {
        "body": Head("ModernBertDecoderModel"),
        "causal_lm": Head("ModernBertDecoderForCausalLM", LM),
        "sequence_classification": Head("ModernBertDecoderForSequenceClassification", modernbert.CLASSES),
    },
    prefix="model.",
    constants={"norm_bias": False, "decoder_bias": True, "classifier_bias": False},
    read=read,
    write=write,
    ignored=r"inv_freq$|^decoder\.weight$",
)
FAMILY = Family("modernbert_decoder", DEFAULTS, FORMAT)
