"""GPT-2 (Radford et al. 2019): learned positions, pre-norm LayerNorm, GELU by tanh, biases, tied head."""

from jaxformer.families.format import Family, Format, Head, Key, Name, activation, fused, linear, linears, lm_head, norm
from jaxformer.models.config import TransformerConfig

DEFAULTS = {
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "max_length": 1024,
}


KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("initializer_range", "initializer_range"),
    Key("hidden_size", "n_embd"),
    Key("num_layers", "n_layer"),
    Key("num_heads", "n_head"),
    Key("intermediate_size", "n_inner", None),
    Key("max_length", "n_positions"),
    Key("norm_epsilon", "layer_norm_epsilon"),
    activation("activation_function"),
    Key("tie_embeddings", "tie_word_embeddings", True),
    Key("dropout", "resid_pdrop", 0.0),
    Key("dropout", "embd_pdrop", 0.0),
    Key("attention_dropout", "attn_pdrop", 0.0),
)


def names(config: TransformerConfig) -> list[Name]:
    """GPT-2 stores its linear kernels as ``[in, out]`` (Conv1D), so nothing is transposed."""
    table = [
        Name("embeddings/token/embedding", "wte.weight"),
        Name("embeddings/position/embedding", "wpe.weight"),
        *norm("final_norm", "ln_f"),
    ]
    block = "h.{}."
    table += norm("layers/attention_norm", f"{block}ln_1") + norm("layers/feed_forward_norm", f"{block}ln_2")
    table += fused("layers/attention/", f"{block}attn.c_attn", transposed=False)
    others = {"attention/output": "attn.c_proj", "feed_forward/up": "mlp.c_fc", "feed_forward/down": "mlp.c_proj"}
    return table + linears("layers/", block, others, transposed=False)


FORMAT = Format(
    "gpt2",
    KEYS,
    names,
    {
        "body": Head("GPT2Model"),
        "causal_lm": Head("GPT2LMHeadModel", lm_head("lm_head")),
        "sequence_classification": Head("GPT2ForSequenceClassification", linear("classifier", "score", bias=False)),
        "token_classification": Head("GPT2ForTokenClassification", linear("classifier", "classifier")),
        "question_answering": Head("GPT2ForQuestionAnswering", linear("span_classifier", "qa_outputs")),
    },
    prefix="transformer.",
    constants={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    # The causal mask, a buffer in the oldest files.
    ignored=r"attn\.(masked_)?bias$",
)
FAMILY = Family("gpt2", DEFAULTS, FORMAT)
