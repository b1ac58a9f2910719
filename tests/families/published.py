"""One published model of each family: its ``config.json`` and its size."""

from typing import Any, NamedTuple


class Published(NamedTuple):
    """A published model.

    Attributes:
        family: ours.
        hub: its name on the Hugging Face Hub.
        parameters: their number, a tied head counted once: what the PyTorch model of the config has, as a parity test
            holds.
        hf: what its config.json says, as far as it is about the model.
        differs: the keys of ours in which the family's defaults are not those of this model.
    """

    family: str
    hub: str
    parameters: int
    hf: dict[str, Any]
    differs: dict[str, Any] = {}


PUBLISHED = [
    Published(
        "gpt2",
        "openai-community/gpt2",
        124_439_808,
        {
            "activation_function": "gelu_new",
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 1024,
            "vocab_size": 50257,
        },
    ),
    Published(
        "llama",
        "meta-llama/Llama-3.2-1B",
        1_235_814_400,
        {
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "vocab_size": 128256,
        },
        {"max_length": 131072, "rope_scaling": {"type": "llama3", "factor": 32.0}},
    ),
    Published(
        "gpt_neox",
        "EleutherAI/pythia-160m",
        162_322_944,
        {
            "hidden_act": "gelu",
            "hidden_size": 768,
            "initializer_range": 0.02,
            "intermediate_size": 3072,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 2048,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "rotary_emb_base": 10000,
            "rotary_pct": 0.25,
            "tie_word_embeddings": False,
            "use_parallel_residual": True,
            "vocab_size": 50304,
        },
    ),
    Published(
        "opt",
        "facebook/opt-125m",
        125_239_296,
        {
            "_remove_final_layer_norm": False,
            "activation_function": "relu",
            "do_layer_norm_before": True,
            "ffn_dim": 3072,
            "hidden_size": 768,
            "init_std": 0.02,
            "max_position_embeddings": 2048,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "vocab_size": 50272,
            "word_embed_proj_dim": 768,
        },
    ),
    Published(
        "bloom",
        "bigscience/bloom-560m",
        559_214_592,
        {
            "apply_residual_connection_post_layernorm": False,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "n_embed": 1024,
            "n_layer": 24,
            "num_attention_heads": 16,
            "seq_length": 2048,
            "vocab_size": 250880,
        },
    ),
    Published(
        "mistral",
        "mistralai/Mistral-7B-v0.1",
        7_241_732_096,
        {
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
    ),
    Published(
        "qwen3",
        "Qwen/Qwen3-0.6B",
        596_049_920,
        {
            "attention_bias": False,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 1024,
            "initializer_range": 0.02,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
    ),
    Published(
        "gemma",
        "google/gemma-2b",
        2_506_172_416,
        {
            "attention_bias": False,
            "head_dim": 256,
            "hidden_act": "gelu",
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 16384,
            "max_position_embeddings": 8192,
            "num_attention_heads": 8,
            "num_hidden_layers": 18,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "vocab_size": 256000,
        },
    ),
]
