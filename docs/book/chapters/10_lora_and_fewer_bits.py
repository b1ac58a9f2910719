# %% [markdown]
# title

# %%
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import functional as F

D, rank, scale = 64, 4, 2.0
keys = jax.random.split(jax.random.key(0), 4)
x = jax.random.normal(keys[0], (3, D))
W = jax.random.normal(keys[1], (D, D)) / D**0.5
A = jax.random.normal(keys[2], (D, rank)) / D**0.5
B = jax.random.normal(keys[3], (rank, D))

# %% [markdown]
# low_rank

# %%
update = scale * A @ B  # [D, D], but of rank 4
whole = x @ (W + update)
apart = x @ W + (x @ A) @ (scale * B)  # the update is never made
assert jnp.allclose(whole, apart, atol=1e-4)
assert jnp.allclose(apart, F.linear(x, F.LowRankKernel(W, A, scale * B)), atol=1e-4)
print(f"{W.size:,} numbers in W, {A.size + B.size:,} in A and B; rank {np.linalg.matrix_rank(update)}")

# %% [markdown]
# pretrain

# %%
import argparse
import json
from pathlib import Path

import flax.linen as nn
import optax

from jaxformer import plot
from jaxformer.families import build_model, model_config
from jaxformer.models import TransformerConfig


def letters(*modules):
    text = b"".join(Path(module.__file__).read_bytes() for module in modules)
    return np.frombuffer(text, np.uint8).astype(np.int32) % 128


sizes = {"type": "llama", "vocab_size": 128, "hidden_size": 96, "num_layers": 2, "num_heads": 4}
model = build_model(TransformerConfig(**model_config({**sizes, "max_length": 64})))
params = nn.unbox(model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"])


def loss_of(params, rows):
    sums = F.cross_entropy(model.apply({"params": params}, rows[:, :-1]).logits, rows[:, 1:])
    return sums.total / sums.tokens


def rows_of(text, number):
    starts = np.random.default_rng(number).integers(0, len(text) - 65, 16)
    return np.stack([text[start : start + 65] for start in starts])


def train(loss, trained, text, steps, rate):
    optimizer = optax.adam(rate)
    state = optimizer.init(trained)

    @jax.jit
    def step(trained, state, rows):
        value, gradient = jax.value_and_grad(loss)(trained, rows)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(trained, updates), state, value

    losses = []
    for number in range(steps):
        trained, state, value = step(trained, state, rows_of(text, number))
        losses.append(float(value))
    return trained, losses


python = letters(argparse)
base, losses = train(loss_of, params, python, 300, 3e-3)
print(f"on Python's source: {losses[0]:.2f} -> {np.mean(losses[-20:]):.2f}")

# %% [markdown]
# adapt

# %%
from jaxformer.lora import LoraConfig, adapt, init_factors, merge

capitals = np.frombuffer(Path(json.__file__).read_bytes().upper(), np.uint8).astype(np.int32) % 128
config = LoraConfig(rank=4, alpha=8)
factors = init_factors(jax.random.key(1), base, config)
assert jnp.array_equal(loss_of(adapt(base, factors, config), rows_of(capitals, 0)), loss_of(base, rows_of(capitals, 0)))


def loss_of_factors(factors, rows):
    return loss_of(adapt(base, factors, config), rows)


frozen = np.mean([loss_of(base, rows_of(capitals, number)) for number in range(10)])
trained, by_lora = train(loss_of_factors, factors, capitals, 200, 1e-2)
_, by_all = train(loss_of, base, capitals, 200, 1e-3)

count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
print(f"base model on capitals: {frozen:.2f}")
print(f"LoRA: {count(trained):,} of {count(base):,} parameters trained, loss {np.mean(by_lora[-20:]):.2f}")
print(f"all:  {count(base):,} trained, loss {np.mean(by_all[-20:]):.2f}")
plot.learning_curves({"LoRA": (range(200), by_lora), "all parameters": (range(200), by_all)})

# %% [markdown]
# merged

# %%
merged = merge(base, trained, config)
rows = rows_of(capitals, 1000)
assert jnp.allclose(loss_of(merged, rows), loss_of_factors(trained, rows), atol=1e-4)
print("merged into the kernels: the same loss, and nothing beside them")

# %% [markdown]
# int8

# %%
step = jnp.abs(W).max(axis=0) / 127  # one for each output
values = jnp.round(W / step).astype(jnp.int8)
library = F.quantize(W, axis=0)
assert jnp.array_equal(values, library.values)
error = jnp.abs(values * step - W).max()
print(f"int8 takes {values.nbytes + step.nbytes:,} bytes for {W.nbytes:,}")
print(f"largest error {error:.4f}, half a step is {step.max() / 2:.4f}")

# %% [markdown]
# fewer


# %%
def round_to(kernel, bits):
    most = 2 ** (bits - 1) - 1
    step = jnp.abs(kernel).max(axis=1, keepdims=True) / most  # over the inputs
    return jnp.round(kernel / step) * step


def with_bits(params, bits):
    small = lambda path, leaf: round_to(leaf, bits) if path[-1].key in ("kernel", "embedding") else leaf
    return jax.tree_util.tree_map_with_path(small, params)


test = [rows_of(python, 10_000 + number) for number in range(10)]
evaluate = jax.jit(lambda params: jnp.mean(jnp.stack([loss_of(params, rows) for rows in test])))
whole = float(evaluate(base))
for bits in (8, 6, 4, 3, 2):
    print(f"{bits} bits: loss {float(evaluate(with_bits(base, bits))):.3f} (float32: {whole:.3f})")

# %% [markdown]
# summary
