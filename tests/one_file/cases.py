"""Models to be written as one file, beside those of ``tests.models.tiny``: other heads, and switches in odd company."""

from jaxformer.families import build_model
from jaxformer.models.heads import Body, QuestionAnswering, SequenceClassifier, TokenClassifier
from jaxformer.models.masked_lm import Discriminator, MaskedLM
from jaxformer.models.transformer import Encoder
from tests.models.tiny import EVERY_CONFIG, config_of

GROUPED = {"num_heads": 6, "num_kv_heads": 3, "head_size": 4}
BUCKETS = {"positions": "relative", "relative_buckets": 8, "relative_max_distance": 10}
YARN = {"type": "yarn", "factor": 4.0, "original_max_length": 8}
# By name: the family, further switches, and the model, by default that of the family with its usual head.
CASES = {
    "gpt2 with relative positions": ("gpt2", BUCKETS),
    "gpt2 with ALiBi and shared keys": ("gpt2", {"positions": "alibi", **GROUPED}),
    "gpt2 without positions and biases": ("gpt2", {"positions": "none", "use_bias": False}),
    "gpt2 with a narrow embedding": (
        "gpt2",
        {"norm": "rms_norm", "share_layers": True, "embedding_size": 10, "token_types": 2, "tie_embeddings": False},
    ),
    "gpt2 with an offset": ("gpt2", {"norm_offset": 1.0, "embedding_norm": True, "scale_logits": True}),
    "llama with YaRN": ("llama", {"rope_scaling": YARN, "window": 3, "window_from": 1}),
    "llama with parallel YaRN": (
        "llama",
        {"rope_scaling": {**YARN, "truncate": False}, "parallel_residual": True, "first_norm": False},
    ),
    "llama with linear scaling": (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "qk_norm": True, "qkv_bias": True, "norm_offset": 1.0},
    ),
    "llama with two bases": (
        "llama",
        {"rope_scaling": None, "window": 3, "global_every": 2, "local_rope_theta": 99.0, "feed_forward_bias": True},
    ),
    "bart with rotary positions": (
        "bart",
        {"positions": "rotary", "num_decoder_layers": 3, "qk_norm": True, **GROUPED},
    ),
    "bart with ALiBi": ("bart", {"positions": "alibi", "gated": True, "window": 4, **GROUPED}),
    "t5 with shared layers": (
        "t5",
        {"window": 3, "global_every": 2, "tie_embeddings": False, "share_layers": True, "token_types": 1, **GROUPED},
    ),
    "mbart with a narrow embedding": (
        "mbart",
        {"embedding_size": 10, "first_norm": False, "logits_bias": True, "tie_embeddings": False},
    ),
    "bert with a head of its own": ("bert", {"tie_embeddings": False, "embedding_size": 10, **BUCKETS}),
    "bert on pairs": ("bert", {}, lambda c: MaskedLM(c, sentence_pairs=True)),
    "bert with a pooler": ("bert", {}, lambda c: Body(c, True)),
    "bert as an encoder": ("bert", {"positions": "alibi"}, Encoder),
    "gpt2 as a body": ("gpt2", {}, Body),
    "t5 as a body": ("t5", {"decoder_start_token_id": 3}, Body),
    "bert, texts": ("bert", {}, lambda c: SequenceClassifier(c, 3)),
    "roberta, texts": ("roberta", {"activation": "tanh"}, lambda c: SequenceClassifier(c, 2)),
    "modernbert, texts": ("modernbert", {}, lambda c: SequenceClassifier(c, 3)),
    "gpt2, texts": ("gpt2", {}, lambda c: SequenceClassifier(c, 3)),
    "gpt2, texts with padding": ("gpt2", {"pad_token_id": 3}, lambda c: SequenceClassifier(c, 3)),
    "t5, texts": ("t5", {"decoder_start_token_id": 0, "eos_token_id": 5}, lambda c: SequenceClassifier(c, 3)),
    "mbart, texts": ("mbart", {"eos_token_id": [5, 6]}, lambda c: SequenceClassifier(c, 1)),
    "bert, tokens": ("bert", {}, lambda c: TokenClassifier(c, 3)),
    "modernbert, tokens": ("modernbert", {}, lambda c: TokenClassifier(c, 3)),
    "gpt2, tokens": ("gpt2", {}, lambda c: TokenClassifier(c, 3)),
    "t5, tokens": ("t5", {}, lambda c: TokenClassifier(c, 3)),
    "bert, questions": ("bert", {}, QuestionAnswering),
    "modernbert, questions": ("modernbert", {}, QuestionAnswering),
    "llama, questions": ("llama", {}, QuestionAnswering),
    "bart, questions": ("bart", {"decoder_start_token_id": 2}, QuestionAnswering),
}
WITHOUT = {"experts", "mixtral", "qwen3_moe", "olmoe", "mamba", "mamba2"}  # have no file
NAMES = [*(name for name in EVERY_CONFIG if name not in WITHOUT), *CASES]


def pretrained(config):
    """The model with the head that its family is pre-trained with."""
    if config.architecture != "encoder":
        return build_model(config)
    return Discriminator(config) if config.type == "electra" else MaskedLM(config)


def model_of(name, **switches):
    """The model of a case, without the options that only training reads."""
    family, own, make = (*CASES.get(name, (name, {})), pretrained)[:3]
    return make(config_of(family, **{"unroll": None, **own, **switches}))


def outputs_of(output):
    """The arrays of a model's output that a file returns."""
    names = ("logits", "pair_logits", "start_logits", "end_logits")
    if not hasattr(output, "logits") and not hasattr(output, "start_logits"):
        names = ("last_hidden_state", "pooler_output")
    return [array for name in names if (array := getattr(output, name, None)) is not None]
