# %% [markdown]
# title

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxformer import functional as F

B, T, D = 4, 6, 8
x = 3 * jax.random.normal(jax.random.key(0), (B, T, D)) + 1

# %% [markdown]
# layer_norm

# %%
mean = x.mean(axis=-1, keepdims=True)
variance = x.var(axis=-1, keepdims=True)
by_hand = (x - mean) / jnp.sqrt(variance + 1e-5)

scale, bias = jnp.ones(D), jnp.zeros(D)
assert jnp.allclose(by_hand, F.layer_norm(x, scale, bias, epsilon=1e-5), atol=1e-5)
print("mean", by_hand[0, 0].mean().round(6), "deviation", by_hand[0, 0].std().round(4))

# %% [markdown]
# rms_norm

# %%
rms = x / jnp.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
assert jnp.allclose(rms, F.rms_norm(x, scale, epsilon=1e-6), atol=1e-5)

# %% [markdown]
# batch_norm


# %%
def batch_norm(x):
    return (x - x.mean(axis=(0, 1))) / jnp.sqrt(x.var(axis=(0, 1)) + 1e-5)


other_neighbours = x.at[1:].multiply(10.0)
for name, norm in {"batch norm": batch_norm, "layer norm": lambda x: F.layer_norm(x, scale, bias)}.items():
    moved = jnp.abs(norm(x)[0] - norm(other_neighbours)[0]).max()
    print(f"{name}: the first example moves by {moved:.2f} when the others change")

figure = plt.figure(figsize=(6.4, 2.4), layout="constrained")
for place, (title, chosen) in enumerate({"batch norm": np.s_[:, 3], "layer norm": np.s_[4, :]}.items()):
    axes = figure.add_subplot(1, 2, place + 1)
    shown = np.zeros((B * T, D))
    shown[chosen] = 1
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    axes.set(title=f"{title}: one mean over these", xlabel="features", ylabel="tokens of the batch")
plt.show()

# %% [markdown]
# feed_forward

# %%
inner = 32
keys = jax.random.split(jax.random.key(1), 3)
up, gate = (jax.random.normal(key, (D, inner)) / D**0.5 for key in keys[:2])
down = jax.random.normal(keys[2], (inner, D)) / inner**0.5

ungated = jax.nn.gelu(x @ up, approximate=False) @ down
weights = {"up": {"kernel": up}, "down": {"kernel": down}}
assert jnp.allclose(ungated, F.feed_forward(x, weights, activation="gelu"), atol=1e-4)

gated = (jax.nn.silu(x @ gate) * (x @ up)) @ down
assert jnp.allclose(gated, F.feed_forward(x, {**weights, "gate": {"kernel": gate}}, activation="silu"), atol=1e-4)
print("plain and gated feed-forward: equal")

# %% [markdown]
# residual

# %%
L = 24
kernels = 0.5 * jax.random.normal(jax.random.key(2), (L, D, D)) / D**0.5  # small, as networks begin
tokens = jax.random.normal(jax.random.key(3), (T, D))


def plain(x, kernel):
    return jnp.tanh(x @ kernel)


def residual(x, kernel):
    return x + jnp.tanh(F.layer_norm(x, scale, bias) @ kernel)


def stack(kernels, layer):
    x = tokens
    for kernel in kernels:
        x = layer(x, kernel)
    return x.sum()


figure, axes = plt.subplots(figsize=(5.4, 3), layout="constrained")
for name, layer in {"x + f(norm(x))": residual, "f(x)": plain}.items():
    norms = jnp.sqrt((jax.grad(stack)(kernels, layer) ** 2).sum(axis=(1, 2)))
    axes.semilogy(range(1, L + 1), norms, label=name)
    print(f"{name}: the first layer has {norms[0] / norms[-1]:.2g} times the gradient of the last")
axes.set(xlabel="layer", ylabel="norm of the gradient")
axes.legend()
plt.show()

# %% [markdown]
# recurrent

# %%
T, D = 60, 32
inputs = jax.random.normal(jax.random.key(3), (T, D))
recurrent = 0.8 * jax.random.orthogonal(jax.random.key(4), D)


def last_of_recurrent(inputs):
    state, _ = jax.lax.scan(lambda state, x: (jnp.tanh(state @ recurrent + x), None), jnp.zeros(D), inputs)
    return state.sum()


def last_of_attention(inputs):
    heads = inputs[None, :, None, :]
    return F.dot_product_attention(heads[:, -1:], heads, heads).sum()


figure, axes = plt.subplots(figsize=(5.4, 3), layout="constrained")
for name, function in {"recurrent net": last_of_recurrent, "attention": last_of_attention}.items():
    reach = jnp.linalg.norm(jax.grad(function)(inputs), axis=-1)
    axes.semilogy(range(T), reach, label=name)
    print(f"{name}: the first of {T} tokens has {reach[0] / reach[-2]:.1e} times the gradient of a near one")
axes.set(xlabel="token", ylabel="gradient of the last output")
axes.legend()
plt.show()

# %% [markdown]
# summary
