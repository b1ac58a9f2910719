"""GPT-Neo (Black et al. 2021): GPT-2 whose every second block sees a window, with scores that are not scaled."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families.format import Family, Format, Key, activation, decoder_heads, rows, same
from jaxformer.families.windows import FULL, SLIDING, layer_types, read_layer_types
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError

# The shape is that of GPT-Neo 125M.
DEFAULTS = {
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "max_length": 2048,
    "qkv_bias": False,
    "scale_scores": False,
    "window": 256,
    "global_every": 2,
}
KEYS = (
    *same("vocab_size", "hidden_size", "num_layers", "num_heads", "initializer_range"),
    Key("intermediate_size", "intermediate_size", None),
    Key("max_length", "max_position_embeddings"),
    Key("norm_epsilon", "layer_norm_epsilon"),
    activation("activation_function"),
    Key("tie_embeddings", "tie_word_embeddings", True),
    Key("dropout", "resid_dropout", 0.0),
    Key("dropout", "embed_dropout", 0.0),
    Key("attention_dropout", "attention_dropout", 0.0),
)
KINDS = {"global": FULL, "local": SLIDING}


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The kinds of the blocks, written as groups with the number of their repetitions."""
    groups = hf.get("attention_types") or [[["global", "local"], hf["num_layers"] // 2]]
    names = [name for kinds, times in groups for name in list(kinds) * times]
    if set(names) - set(KINDS) or len(names) != hf["num_layers"]:
        raise UserError(
            f"config.json has attention_types: {groups!r:.80}, expected global and local for {hf['num_layers']} layers"
        )
    window = hf["window_size"] if "local" in names else None
    return {"window": window, **read_layer_types([KINDS[name] for name in names] if window else [])}


def write(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read``, a group for each block."""
    names = {kind: name for name, kind in KINDS.items()}
    kinds = [names[kind] for kind in layer_types(config)]
    groups = [[[kind], 1] for kind in kinds]
    return {"attention_types": groups, "attention_layers": kinds, "window_size": config.window or 256}


BLOCK = {
    "attention_norm": "ln_1",
    "attention/query": "attn.attention.q_proj",
    "attention/key": "attn.attention.k_proj",
    "attention/value": "attn.attention.v_proj",
    "attention/output": "attn.attention.out_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward/up": "mlp.c_fc",
    "feed_forward/down": "mlp.c_proj",
}
FORMAT = Format(
    "gpt_neo",
    KEYS,
    [
        *rows({"embeddings/token": "wte", "embeddings/position": "wpe", "final_norm": "ln_f"}),
        *rows(BLOCK, "layers/", "h.{}."),
    ],
    decoder_heads("GPTNeo"),
    prefix="transformer.",
    read=read,
    write=write,
    # The causal mask, a buffer in old files.
    ignored=r"attention\.(masked_)?bias$",
)
FAMILY = Family("gpt_neo", DEFAULTS, FORMAT)
