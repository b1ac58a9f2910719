from jaxformer.families import FAMILIES

from_hf = FAMILIES["llama"].from_hf

SCALING = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
HF = {
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "rms_norm_eps": 1e-05,
    "vocab_size": 128256,
}


def test_rotary_scaling_of_either_transformers():
    four = from_hf({**HF, "rope_theta": 500000.0, "rope_scaling": {**SCALING, "rope_type": "llama3"}})
    five = from_hf({**HF, "rope_parameters": {**SCALING, "rope_type": "llama3", "rope_theta": 500000.0}})
    assert four == five
    assert four["rope_theta"] == 500000.0
    assert four["rope_scaling"] == {
        "type": "llama3",
        "factor": 32.0,
        "low_frequency_factor": 1.0,
        "high_frequency_factor": 4.0,
        "original_max_length": 8192,
    }


def test_rotary_scaling_of_older_checkpoints():
    plain = from_hf({**HF, "rope_theta": 500000.0, "rope_scaling": None})
    assert plain["rope_scaling"] is None and plain["rope_theta"] == 500000.0
    linear = from_hf({**HF, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert linear["rope_scaling"] == {"type": "linear", "factor": 2.0}
