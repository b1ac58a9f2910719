"""Makes the golden files of this folder from tiny random models of PyTorch ``transformers``.

    pip install -e ".[test,parity]" && python -m tests.golden.make  # or the names of some

Each file holds a model's ``config.json``, its state dict, a batch with padding on either side, and what PyTorch makes
of it: logits, mean loss and gradients. The tests that read them need no PyTorch; the parity tests make them anew and
compare.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tests.golden import experts

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
SMALL = {
    "vocab_size": 31,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 16,
}
NEOX = {**SMALL, "intermediate_size": 10}
HALF_ROTARY = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
OPT = {**SMALL, "hidden_size": 9, "ffn_dim": 10}
BLOOM = {"vocab_size": 31, "hidden_size": 9, "n_layer": 2, "n_head": 3}
GATED = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 10}
PLAIN_ROTARY = {"rope_type": "default", "rope_theta": 100.0}
MISTRAL = {
    **GATED,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "sliding_window": 4,
    "rope_parameters": PLAIN_ROTARY,
}
THREE_HEADS = {**GATED, "num_attention_heads": 3, "num_key_value_heads": 1, "rope_parameters": PLAIN_ROTARY}
QWEN3 = {**GATED, "head_dim": 4, "rope_parameters": PLAIN_ROTARY}
QWEN3_MOE = {**QWEN3, "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 9, "norm_topk_prob": True}
MAMBA = {"vocab_size": 31, "hidden_size": 12, "num_hidden_layers": 2, "state_size": 5}
GEMMA = {**GATED, "head_dim": 6, "num_key_value_heads": 1, "rope_parameters": PLAIN_ROTARY}

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
    "gpt_neox": ("gpt_neox", {**NEOX, "rope_parameters": HALF_ROTARY}),
    "opt": ("opt", OPT),
    "bloom": ("bloom", BLOOM),
    "mistral": ("mistral", MISTRAL),
    "qwen2": ("qwen2", THREE_HEADS),
    "qwen3": ("qwen3", {**QWEN3, "tie_word_embeddings": True}),
    "gemma": ("gemma", GEMMA),
    "mixtral": ("mixtral", {**THREE_HEADS, "num_local_experts": 3}),
    "qwen3_moe": ("qwen3_moe", QWEN3_MOE),
    "mamba": ("mamba", MAMBA),
    "mamba2": ("mamba2", {**MAMBA, "num_heads": 6, "head_dim": 4, "n_groups": 2, "chunk_size": 4}),
    "olmoe": ("olmoe", {**THREE_HEADS, "num_experts": 5, "num_experts_per_tok": 2}),
}

# More of what a checkpoint may say, for the parity tests only.
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}
MORE_CASES = {
    "gpt2_relu": ("gpt2", {**GPT2, "activation_function": "relu", "n_head": 5}),
    "gpt2_one_layer": ("gpt2", {**GPT2, "n_layer": 1, "n_head": 1, "activation_function": "gelu_pytorch_tanh"}),
    "llama_linear": ("llama", {**LLAMA, "rope_parameters": LINEAR}),
    "llama_plain_heads": ("llama", {**LLAMA, "num_key_value_heads": 6, "head_dim": 6}),
    "llama_derived_head": ("llama", {**LLAMA, "num_attention_heads": 3, "head_dim": None, "tie_word_embeddings": True}),
    "gpt_neox_one_after_the_other": (
        "gpt_neox",
        {**NEOX, "rope_parameters": HALF_ROTARY, "use_parallel_residual": False, "hidden_act": "gelu_fast"},
    ),
    "gpt_neox_tied": ("gpt_neox", {**NEOX, "hidden_size": 24, "tie_word_embeddings": True, "layer_norm_eps": 1e-3}),
    "opt_untied": ("opt", {**OPT, "activation_function": "gelu", "tie_word_embeddings": False}),
    "bloom_untied": (
        "bloom",
        {**BLOOM, "hidden_size": 12, "n_head": 4, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
    ),
    "bloom_six_heads": ("bloom", {**BLOOM, "hidden_size": 12, "n_head": 6, "n_layer": 1}),
    "mistral_window_of_one": ("mistral", {**MISTRAL, "sliding_window": 1, "tie_word_embeddings": True}),
    "mistral_no_window": ("mistral", {**MISTRAL, "sliding_window": None, "head_dim": 6}),
    "qwen3_untied": ("qwen3", {**QWEN3, "num_key_value_heads": 4, "rope_parameters": LINEAR}),
    "gemma_untied": ("gemma", {**GEMMA, "hidden_act": "gelu", "tie_word_embeddings": False}),
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

    # A family is called as transformers calls it.
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(family, **keys, **tokens)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    experts.with_odd_experts(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.4)
            if "norm" in name or ".ln_" in name:
                parameter.add_(1.0 if name.endswith("weight") else 0.0)
    return model


def parameters(model):
    """A model's parameters by the names they have in its files, a tied head once."""
    # transformers 5 calls every output layer lm_head and renames that of GPT-NeoX when it reads and writes.
    renamed = {"lm_head.weight": "embed_out.weight"} if model.config.model_type == "gpt_neox" else {}
    return {renamed.get(name, name): p for name, p in experts.unfused(model, model.named_parameters())}


def run(model, batch):
    """Everything a golden file holds, as numpy arrays."""
    import inspect

    import torch

    inputs = {name: torch.tensor(array) for name, array in batch.items()}
    # transformers' forward pass counts padding as positions; its generate, and this library, do not.
    if "position_ids" in inspect.signature(model.forward).parameters:  # else it counts by the mask, as BLOOM
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    model.zero_grad()
    output = model(**inputs, use_cache=False)
    output.loss.backward()
    return {
        "config": np.array(json.dumps(model.config.to_dict(), sort_keys=True, default=str)),
        "loss": output.loss.detach().numpy(),
        "logits": output.logits.detach().numpy(),
        **{f"batch/{name}": array for name, array in batch.items()},
        **{f"state/{name}": parameter.detach().numpy() for name, parameter in parameters(model).items()},
        **{f"gradient/{name}": parameter.grad.numpy() for name, parameter in parameters(model).items()},
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
    for name in sys.argv[1:] or makers:
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, **makers[name](name))
        print(f"{path} {path.stat().st_size / 1000:.0f} kB")
