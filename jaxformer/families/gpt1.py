"""GPT (Radford et al. 2018), the first: post-norm, learned positions, GELU by tanh, tied head."""

from jaxformer.families import gpt2
from jaxformer.families.format import Family, Format, Key, decoder_heads, read_activation, rows, write_activation
from jaxformer.families.gpt2 import BLOCK

DEFAULTS = {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "max_length": 512, "norm_place": "post"}


def _read_activation(name: str) -> str:
    """Its "gelu" is the formula with tanh."""
    return "gelu_tanh" if name == "gelu" else read_activation(name)


def _write_activation(name: str) -> str:
    return "gelu" if name == "gelu_tanh" else write_activation(name)


KEYS = (
    *(key for key in gpt2.KEYS if key.ours not in ("intermediate_size", "activation")),
    Key("activation", "afn", "gelu", _read_activation, _write_activation),
)
HEADS = decoder_heads("OpenAIGPT")
HEADS["causal_lm"] = HEADS["causal_lm"]._replace(architecture="OpenAIGPTLMHeadModel")
FORMAT = Format(
    "openai-gpt",
    KEYS,
    [
        *rows({"embeddings/token": "tokens_embed", "embeddings/position": "positions_embed"}),
        *rows(BLOCK, "layers/", "h.{}.", transposed=False),
    ],
    {kind: HEADS[kind] for kind in ("body", "causal_lm", "sequence_classification")},
    prefix="transformer.",
    # The causal mask, a buffer in the oldest files, and the numbers of the positions.
    ignored=r"attn\.bias$|position_ids$",
)
FAMILY = Family("gpt1", DEFAULTS, FORMAT)
