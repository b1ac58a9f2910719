"""T5 (Raffel et al. 2020) and its successors: relative position biases, RMS norm, no biases, unscaled scores."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxformer.families.format import Family, Format, Head, Key, Name, read_activation, rows, same, write_activation
from jaxformer.models.config import TransformerConfig

# T5-small of version 1.0. Relative positions have no longest length; 512 is what it was trained with.
T5: dict[str, Any] = {
    "architecture": "encoder_decoder",
    "hidden_size": 512,
    "num_layers": 6,
    "num_heads": 8,
    "head_size": 64,
    "intermediate_size": 2048,
    "max_length": 512,
    "norm": "rms_norm",
    "norm_epsilon": 1e-6,
    "activation": "relu",
    "gated": False,
    "use_bias": False,
    "positions": "relative",
    "relative_buckets": 32,
    "relative_max_distance": 128,
    "scale_scores": False,
    "tie_embeddings": True,
    "scale_logits": True,
    "pooler": "tanh",
    "initializer": "fan_in",
    "dropout": 0.1,
    "attention_dropout": 0.1,
}
# Version 1.1 was pre-trained without dropout; Flan-T5 and mT5 are of the same shape (Chung et al. 2022; Xue et al.
# 2021), mT5 with a vocabulary of 250,112; ByT5 reads bytes (Xue et al. 2022).
T5_V1_1 = {
    **T5,
    "num_layers": 8,
    "num_heads": 6,
    "intermediate_size": 1024,
    "activation": "gelu_tanh",
    "gated": True,
    "tie_embeddings": False,
    "scale_logits": False,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


KEYS = (
    *same("vocab_size", "num_layers", "num_heads"),
    Key("hidden_size", "d_model"),
    Key("num_decoder_layers", "num_decoder_layers", None),
    Key("head_size", "d_kv"),
    Key("intermediate_size", "d_ff"),
    # Relative positions have no longest length; the model was trained with this one.
    Key("max_length", "n_positions", 512),
    Key("norm_epsilon", "layer_norm_epsilon"),
    Key("relative_buckets", "relative_attention_num_buckets"),
    Key("relative_max_distance", "relative_attention_max_distance", 128),
    Key("dropout", "dropout_rate"),
    Key("attention_dropout", "dropout_rate"),
)


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The feed-forward, and whether the head is tied, which scales its input (section 3.1.2 of the code's T5 v1.0)."""
    kind = hf.get("feed_forward_proj") or "relu"  # absent in the oldest files
    gated = kind.startswith("gated-")
    activation = kind.removeprefix("gated-")
    # "gated-gelu" means the tanh form: the only exception to the names (T5 v1.1's own configuration).
    activation = "gelu_new" if gated and activation == "gelu" else activation
    # Version 5 of transformers calls every head tied; a key of its own says which one was not.
    tied = hf.get("tie_word_embeddings", True)
    scaled = hf.get("scale_decoder_outputs", tied)
    activation = read_activation(activation)
    return {"activation": activation, "gated": gated, "tie_embeddings": tied and scaled, "scale_logits": scaled}


def read_mt5(hf: Mapping[str, Any]) -> dict[str, Any]:
    """As ``read``; mT5 never scales."""
    return {**read({**hf, "scale_decoder_outputs": True}), "scale_logits": False}


def write(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read``."""
    name = write_activation(config.activation)
    name = "gelu" if config.gated and name == "gelu_new" else name
    return {
        "feed_forward_proj": f"gated-{name}" if config.gated else name,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.scale_logits,
    }


def write_mt5(config: TransformerConfig) -> dict[str, Any]:
    """Undoes ``read_mt5``; mT5 has no key for the scale."""
    return {key: value for key, value in write(config).items() if key != "scale_decoder_outputs"}


def names(config: TransformerConfig) -> list[Name]:
    """Encoder and decoder; the relative bias is in the first block of each side, UMT5's in every block."""
    attention = {"query": "q", "key": "k", "value": "v", "output": "o"}
    gated = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
    layers = {
        "attention": ("SelfAttention", attention),
        "cross_attention": ("EncDecAttention", attention),
        "feed_forward": ("DenseReluDense", gated if config.gated else {"up": "wi", "down": "wo"}),
    }
    sides = {"encoder": ("attention", "feed_forward"), "decoder": tuple(layers)}
    table = [Name("shared/embedding", "shared.weight", otherwise="encoder.embed_tokens.weight")]
    block = "{}" if config.relative_per_layer else "0"
    ours = "layers/relative_bias" if config.relative_per_layer else "relative_bias"
    for side, sublayers in sides.items():
        bias = f"block.{block}.layer.0.SelfAttention.relative_attention_bias"
        table += rows({ours: bias, "final_norm": "final_layer_norm"}, f"{side}/", f"{side}.")
        for index, name in enumerate(sublayers):
            theirs, layer = layers[name], f"{side}.block.{{}}.layer.{index}."
            table += rows({f"{name}_norm": "layer_norm"}, f"{side}/layers/", layer)
            table += rows(theirs[1], f"{side}/layers/{name}/", f"{layer}{theirs[0]}.")
    return table


def format_of(model_type: str, name: str) -> Format:
    """The format of T5, whose classes begin with ``name``."""
    classes = rows({"pooler/dense": "classification_head.dense", "classifier": "classification_head.out_proj"})
    spans = rows({"span_classifier": "qa_outputs"})
    # A file of version 5 has a head that is not tied only if it differs from the embedding.
    head = Name("lm_head/kernel", "lm_head.weight", transposed=True, otherwise="shared.weight")
    return Format(
        model_type,
        KEYS,
        names,
        {
            "body": Head(f"{name}Model"),
            "text_encoding": Head(f"{name}EncoderModel", prefix=""),
            "seq2seq_lm": Head(f"{name}ForConditionalGeneration", [head], prefix=""),
            "sequence_classification": Head(f"{name}ForSequenceClassification", classes),
            "token_classification": Head(f"{name}ForTokenClassification", rows({"classifier": "classifier"})),
            "question_answering": Head(f"{name}ForQuestionAnswering", spans, prefix=""),
        },
        prefix="transformer.",
        read=read,
        write=write,
        copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        # Copies of the shared embedding, and a bias of the cross-attention that old files have and nothing reads.
        ignored=r"(encoder|decoder)\.embed_tokens\.weight$|^lm_head\.weight$|EncDecAttention\.relative_attention_bias",
    )


T5_FORMAT = format_of("t5", "T5")
FORMATS = {"t5": T5_FORMAT, "t5_v1_1": T5_FORMAT, "flan_t5": T5_FORMAT, "byt5": T5_FORMAT}
FORMATS["mt5"] = replace(format_of("mt5", "MT5"), read=read_mt5, write=write_mt5)
# UMT5 (Chung et al. 2023).
FORMATS["umt5"] = replace(format_of("umt5", "UMT5"), read=read_mt5, write=write_mt5)
DEFAULTS = {"t5": T5, "umt5": {**T5_V1_1, "relative_per_layer": True}}
FAMILIES = tuple(
    Family(name, DEFAULTS.get(name, T5_V1_1), format, "span_corruption") for name, format in FORMATS.items()
)
