"""GPT-J (Wang, Komatsuzaki 2021): attention beside the feed-forward after one norm, rotary positions of neighbours."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families import gpt2
from jaxformer.families.format import Family, Format, Key, decoder_heads, rows
from jaxformer.models.config import TransformerConfig

DEFAULTS = {
    "hidden_size": 4096,
    "num_layers": 28,
    "num_heads": 16,
    "max_length": 2048,
    "parallel_residual": True,
    "shared_norm": True,
    "qkv_bias": False,
    "attention_output_bias": False,
    "positions": "rotary",
    "rotary_fraction": 0.25,
    "rotary_adjacent": True,
    "tie_embeddings": False,
    "logits_bias": True,
}
KEYS = (
    *(key for key in gpt2.KEYS if key.ours != "tie_embeddings"),
    Key("tie_embeddings", "tie_word_embeddings", False),
)


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The share of a head that is rotated, which is written as a number of entries."""
    return {"rotary_fraction": hf["rotary_dim"] / (hf["n_embd"] // hf["n_head"])}


def write(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read``."""
    return {"rotary_dim": config.rotary_size}


BLOCK = {
    "attention_norm": "ln_1",
    "attention/query": "attn.q_proj",
    "attention/key": "attn.k_proj",
    "attention/value": "attn.v_proj",
    "attention/output": "attn.out_proj",
    "feed_forward/up": "mlp.fc_in",
    "feed_forward/down": "mlp.fc_out",
}
HEADS = decoder_heads("GPTJ", bias=True)
# transformers has no GPT-J for tokens.
del HEADS["token_classification"]
FORMAT = Format(
    "gptj",
    KEYS,
    [*rows({"embeddings/token": "wte", "final_norm": "ln_f"}), *rows(BLOCK, "layers/", "h.{}.")],
    HEADS,
    prefix="transformer.",
    read=read,
    write=write,
    # The causal mask, a buffer in old files.
    ignored=r"attn\.(masked_)?bias$",
)
FAMILY = Family("gptj", DEFAULTS, FORMAT)
