# %% [markdown]
# title

# %%
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import functional as F
from jaxformer import plot

T, H = 5, 8
query, key, value = jax.random.normal(jax.random.key(0), (3, T, H))

# %% [markdown]
# three_lines

# %%
scores = query @ key.T / jnp.sqrt(H)  # [T, T]: how well each query fits each key
weights = jax.nn.softmax(scores, axis=-1)  # each row adds up to 1
output = weights @ value  # [T, H]: means of the values

# The library's function takes [batch, tokens, heads, size of a head].
as_batch = lambda x: x[None, :, None, :]
library, library_weights = F.dot_product_attention(as_batch(query), as_batch(key), as_batch(value), return_weights=True)
assert jnp.allclose(output, library[0, :, 0], atol=1e-6)
assert jnp.allclose(weights, library_weights[0, 0], atol=1e-6)
print("largest difference", jnp.abs(output - library[0, :, 0]).max())

# %% [markdown]
# scale

# %%
sizes = [4, 16, 64, 256, 1024]
draws = [jax.random.normal(jax.random.key(size), (2, 1000, size)) for size in sizes]
products = [(q * k).sum(-1) for q, k in draws]
for size, product in zip(sizes, products):
    print(f"size {size:4}: deviation of q.k is {product.std():6.2f}, after the scale {(product / size**0.5).std():.2f}")

# %% [markdown]
# order

# %%
shuffled = jnp.array([3, 0, 4, 1, 2])
again = jax.nn.softmax(query @ key[shuffled].T / jnp.sqrt(H)) @ value[shuffled]
assert jnp.allclose(output, again, atol=1e-6)
print("shuffled keys and values: the same output")

# %% [markdown]
# causal

# %%
sees = jnp.tril(jnp.ones((T, T), bool))
causal = jax.nn.softmax(jnp.where(sees, scores, -jnp.inf)) @ value
library = F.dot_product_attention(as_batch(query), as_batch(key), as_batch(value), mask=F.Mask(causal=True))
assert jnp.allclose(causal, library[0, :, 0], atol=1e-6)

changed = value.at[4].set(100.0)
later = F.dot_product_attention(as_batch(query), as_batch(key), as_batch(changed), mask=F.Mask(causal=True))
print("tokens whose output changed with the last value:", np.flatnonzero((library != later).any((0, 2, 3))))

# %%
plot.mask(F.Mask(causal=True).array(6, 6)[0], title="causal: each token sees itself and those before")

# %%
segments = jnp.array([[1, 1, 1, 2, 2, 2]])
packed = F.Mask(causal=True, query_segments=segments, key_segments=segments)
plot.mask(packed.array(6, 6)[0], title="two documents packed into one row")

# %% [markdown]
# padding

# %%
real = jnp.array([[True, True, True, False, False]])
with_garbage = value.at[3:].set(jnp.inf)
padded = F.dot_product_attention(as_batch(query), as_batch(key), as_batch(with_garbage), mask=F.Mask(key_valid=real))
short = jax.nn.softmax(query @ key[:3].T / jnp.sqrt(H)) @ value[:3]
assert jnp.allclose(padded[0, :, 0], short, atol=1e-6)
print("infinite values at padding: the same as without padding")

# %% [markdown]
# heads

# %%
D, N = 16, 2
x = jax.random.normal(jax.random.key(1), (1, T, D))
shapes = {"query": (D, N, H), "key": (D, N, H), "value": (D, N, H), "output": (N, H, D)}
keys = dict(zip(shapes, jax.random.split(jax.random.key(2), 4)))
kernels = {name: {"kernel": jax.random.normal(keys[name], shape) / 4} for name, shape in shapes.items()}

q, k, v = (jnp.einsum("btd,dnh->btnh", x, kernels[name]["kernel"]) for name in ("query", "key", "value"))
heads = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k) / jnp.sqrt(H), axis=-1)
joined = jnp.einsum("bnts,bsnh->btnh", heads, v)
by_hand = jnp.einsum("btnh,nhd->btd", joined, kernels["output"]["kernel"])
assert jnp.allclose(by_hand, F.multi_head_attention(x, kernels), atol=1e-5)
plot.attention(heads[0], [f"token {n}" for n in range(T)], title="two heads that were not trained")

# %% [markdown]
# induction

# %%
import optax

from jaxformer.families import build_model, model_config
from jaxformer.models import TransformerConfig

V, half = 24, 10
sizes = {"type": "llama", "vocab_size": V, "hidden_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2}
model = build_model(TransformerConfig(**model_config({**sizes, "max_length": 2 * half})))
params = model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
optimizer = optax.adam(2e-3)
state = optimizer.init(params)


def rows(key, count):
    first = jax.random.randint(key, (count, half), 0, V)
    return jnp.concatenate([first, first], axis=1)


def loss(params, ids):
    logits = model.apply({"params": params}, ids[:, :-1]).logits
    seen_before = jnp.where(jnp.arange(2 * half - 1) >= half, ids[:, 1:], F.IGNORE)
    sums = F.cross_entropy(logits, seen_before)
    return sums.total / sums.tokens


@jax.jit
def step(params, state, key):
    value, gradient = jax.value_and_grad(loss)(params, rows(key, 64))
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value


losses = []
for number in range(800):
    params, state, value = step(params, state, jax.random.key(number))
    losses.append(float(value))
print(f"loss on the repetition: {losses[0]:.2f} at first (log {V} is {np.log(V):.2f}), {losses[-1]:.3f} at the end")
plot.learning_curves({"loss on the second half": (range(800), losses)})

# %% [markdown]
# induction_picture

# %%
example = rows(jax.random.key(10_000), 1)
names = [chr(ord("a") + int(i)) for i in example[0]]
attentions = model.apply({"params": params}, example, output_attentions=True).attentions
repeated = jnp.arange(half, 2 * half - 1)
best = max(
    ((layer, head) for layer in range(2) for head in range(2)),
    key=lambda at: attentions[at[0]][0, at[1]][repeated, repeated - half + 1].sum(),
)
layer, head = best
share = attentions[layer][0, head][repeated, repeated - half + 1].mean()
print(f"layer {layer}, head {head}: {share:.0%} of the weight is on the token after the earlier copy")
plot.attention(attentions[layer][0, head : head + 1], names, title="an induction head")

# %% [markdown]
# summary
