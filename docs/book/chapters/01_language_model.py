# %% [markdown]
# title

# %% [markdown]
# counting

# %%
import jax
import jax.numpy as jnp

from jaxformer import functional as F

text = "the cat sat on the mat. the cat ran. the dog sat on the cat."
characters = sorted(set(text))
ids = jnp.array([characters.index(character) for character in text])
V = len(characters)

# Three lines: count the pairs, divide each row by its sum.
counts = jnp.zeros((V, V)).at[ids[:-1], ids[1:]].add(1)
probabilities = counts / counts.sum(axis=1, keepdims=True)
t, h = characters.index("t"), characters.index("h")
print(f"{V} characters; after 't' comes 'h' with probability {probabilities[t, h]:.2f}")

# %% [markdown]
# probabilities

# %%
from jaxformer import plot

plot.next_token_probabilities(probabilities[t], characters, top=6)

# %% [markdown]
# chain_rule

# %%
log_probs = jnp.log(probabilities[ids[:-1], ids[1:]])
mean = -log_probs.mean()
print(f"log p(text) = {log_probs.sum():.2f} nats; {mean:.3f} a character, perplexity {jnp.exp(mean):.2f}")

# %% [markdown]
# cross_entropy

# %%
logits = jnp.log(counts + 1e-9)[ids[:-1]]  # [T, V]: a score for each character that may come next
ours = -(jax.nn.log_softmax(logits)[jnp.arange(len(ids) - 1), ids[1:]]).sum()
library = F.cross_entropy(logits[None], ids[None, 1:])
print(f"by hand {ours:.4f}, the library {library.total:.4f} over {library.tokens:.0f} tokens")
assert jnp.allclose(ours, library.total, rtol=1e-5)

# %% [markdown]
# gradient

# %%
gradient = jax.grad(lambda z: F.cross_entropy(z, ids[None, 1:]).total)(logits[None])[0]
by_hand = jax.nn.softmax(logits) - jax.nn.one_hot(ids[1:], V)
assert jnp.allclose(gradient, by_hand, atol=1e-6)
print("gradient of the loss = softmax(logits) - one_hot(next character)")

# %% [markdown]
# learning

# %%
import optax

table = jnp.zeros((V, V))
optimizer = optax.sgd(1.0)
state = optimizer.init(table)


def loss(table):
    sums = F.cross_entropy(table[ids[:-1]][None], ids[None, 1:])
    return sums.total / sums.tokens


losses = []
for step in range(300):
    value, gradient = jax.value_and_grad(loss)(table)
    updates, state = optimizer.update(gradient, state)
    table = optax.apply_updates(table, updates)
    losses.append(float(value))
print(f"loss {losses[0]:.3f} = log({V}) at first, {losses[-1]:.3f} after 300 steps; counting gives {mean:.3f}")
plot.learning_curves({"the table": (range(300), losses)})

# %% [markdown]
# sampling

# %%
key, character, written = jax.random.key(0), characters.index("t"), "t"
for number in range(60):
    character = int(jax.random.categorical(jax.random.fold_in(key, number), table[character]))
    written += characters[character]
print(written)

# %% [markdown]
# longer

# %%
from jaxformer.families import build_model, model_config
from jaxformer.models import TransformerConfig

sizes = {"type": "gpt2", "vocab_size": V, "hidden_size": 32, "num_heads": 2, "num_layers": 2, "max_length": 64}
model = build_model(TransformerConfig(**model_config(sizes)))
row = ids[None, :-1]
params = model.init(jax.random.key(0), row)["params"]
optimizer = optax.adam(1e-2)
state = optimizer.init(params)


@jax.jit
def step(params, state):
    def loss(params):
        sums = F.cross_entropy(model.apply({"params": params}, row).logits, ids[None, 1:])
        return sums.total / sums.tokens

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value


deep = []
for number in range(300):
    params, state, value = step(params, state)
    deep.append(float(value))
plot.learning_curves({"one character back": (range(300), losses), "a GPT, all characters back": (range(300), deep)})

# %% [markdown]
# summary
