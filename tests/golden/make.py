"""Makes the golden files of this folder from tiny random models of PyTorch ``transformers``.

    pip install -e ".[test,parity]" && python -m tests.golden.make

Each file holds a model's ``config.json``, its state dict, a batch with padding on either side, and what PyTorch makes
of it: logits, mean loss and gradients. The tests that read them need no PyTorch; the parity tests make them anew and
compare.
"""

import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent

GPT2 = {"vocab_size": 31, "n_embd": 15, "n_layer": 2, "n_head": 3, "n_positions": 16}
LLAMA = {
    "vocab_size": 31,
    "hidden_size": 18,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 4,
    "intermediate_size": 22,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# Sizes that are not powers of two, so that no axis is taken for another.
CASES = {
    "gpt2_tied": ("gpt2", GPT2),
    "gpt2_untied": (
        "gpt2",
        {
            **GPT2,
            "tie_word_embeddings": False,
            "n_inner": 22,
            "activation_function": "gelu",
            "layer_norm_epsilon": 1e-3,
        },
    ),
    "llama_tied": ("llama", {**LLAMA, "tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "llama_untied": ("llama", {**LLAMA, "num_key_value_heads": 1, "num_attention_heads": 3, "rms_norm_eps": 1e-3}),
}

# More of what a checkpoint may say, for the parity tests only.
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}
MORE_CASES = {
    "gpt2_relu": ("gpt2", {**GPT2, "activation_function": "relu", "n_head": 5}),
    "gpt2_one_layer": ("gpt2", {**GPT2, "n_layer": 1, "n_head": 1, "activation_function": "gelu_pytorch_tanh"}),
    "llama_linear": ("llama", {**LLAMA, "rope_parameters": LINEAR}),
    "llama_plain_heads": ("llama", {**LLAMA, "num_key_value_heads": 6, "head_dim": 6}),
    "llama_derived_head": ("llama", {**LLAMA, "num_attention_heads": 3, "head_dim": None, "tie_word_embeddings": True}),
}


def batch(vocab_size):
    """A whole row, one padded right and one padded left; nothing is trained where the padding meets the text."""
    random = np.random.default_rng(1)
    input_ids = random.integers(0, vocab_size, (3, 11))
    attention_mask = np.ones((3, 11), np.int64)
    attention_mask[1, 7:] = 0
    attention_mask[2, :4] = 0
    labels = np.where(attention_mask == 1, input_ids, -100)
    labels[2, 4] = -100  # the padding before it cannot foretell it
    labels[0, 5] = -100
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def hf_model(family, keys):
    """A PyTorch model with random parameters, large enough that every one of them shows in the output."""
    import torch
    import transformers

    config_class, model_class = {
        "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }[family]
    config = config_class(**keys, attn_implementation="eager", bos_token_id=0, eos_token_id=0, pad_token_id=0)
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.4)
            if "norm" in name or ".ln_" in name:
                parameter.add_(1.0 if name.endswith("weight") else 0.0)
    return model


def run(model, batch):
    """Everything a golden file holds, as numpy arrays."""
    import torch

    inputs = {name: torch.tensor(array) for name, array in batch.items()}
    # transformers' forward pass counts padding as positions; its generate, and this library, do not.
    position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    model.zero_grad()
    output = model(**inputs, position_ids=position_ids, use_cache=False)
    output.loss.backward()
    parameters = dict(model.named_parameters())  # a tied head once
    return {
        "config": np.array(json.dumps(model.config.to_dict(), sort_keys=True, default=str)),
        "loss": output.loss.detach().numpy(),
        "logits": output.logits.detach().numpy(),
        **{f"batch/{name}": array for name, array in batch.items()},
        **{f"state/{name}": parameter.detach().numpy() for name, parameter in parameters.items()},
        **{f"gradient/{name}": parameter.grad.numpy() for name, parameter in parameters.items()},
    }


def make(name):
    """The contents of one golden file, by PyTorch."""
    family, keys = (CASES | MORE_CASES)[name]
    return run(hf_model(family, keys), batch(keys["vocab_size"]))


def load(name):
    """The contents of one golden file, from the file."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


if __name__ == "__main__":
    from tests.golden import bidirectional

    makers = dict.fromkeys(CASES, make) | dict.fromkeys(bidirectional.CASES, bidirectional.make)
    for name, maker in makers.items():
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, **maker(name))
        print(f"{path} {path.stat().st_size / 1000:.0f} kB")
