# %% [markdown]
# title

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxformer import functional as F
from jaxformer import plot

S, T, D, N, H = 4, 3, 16, 2, 8
source, target = ["a", "b", "c", "</s>"], ["<s>", "c", "b"]

# %% [markdown]
# three_masks

# %%
encoder_mask = jnp.ones((S, S), bool)
decoder_mask = jnp.tril(jnp.ones((T, T), bool))
cross_mask = jnp.ones((T, S), bool)
assert jnp.array_equal(decoder_mask, F.Mask(causal=True).array(T, T)[0])
plot.mask(encoder_mask, source, title="encoder")

# %%
plot.mask(F.Mask(causal=True), target, title="decoder")

# %%
plot.mask(cross_mask, target, source, title="cross-attention")

# %% [markdown]
# cross_attention

# %%
keys = jax.random.split(jax.random.key(0), 6)
x, context = jax.random.normal(keys[0], (T, D)), jax.random.normal(keys[1], (S, D))
shapes = {"query": (D, N, H), "key": (D, N, H), "value": (D, N, H), "output": (N, H, D)}
kernels = {name: jax.random.normal(key, shape) / 4 for (name, shape), key in zip(shapes.items(), keys[2:])}

query = jnp.einsum("td,dnh->tnh", x, kernels["query"])
key, value = (jnp.einsum("sd,dnh->snh", context, kernels[name]) for name in ("key", "value"))
weights = jax.nn.softmax(jnp.einsum("tnh,snh->nts", query, key) / jnp.sqrt(H), axis=-1)
by_hand = jnp.einsum("nts,snh,nhd->td", weights, value, kernels["output"])

library = F.multi_head_attention(
    x[None], {name: {"kernel": kernel} for name, kernel in kernels.items()}, context=context[None]
)
assert jnp.allclose(by_hand, library[0], atol=1e-5)
print("weights", weights.shape, "= heads, targets, sources; output", by_hand.shape)

# %% [markdown]
# task

# %%
PAD, START, END, FIRST, longest = 0, 1, 2, 3, 8
names = ["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
V = len(names)


def examples(key, count):
    of_letters, of_lengths = jax.random.split(key)
    letters = jax.random.randint(of_letters, (count, longest + 1), FIRST, V)
    length = jax.random.randint(of_lengths, (count, 1), 3, longest + 1)
    place = jnp.arange(longest + 1)
    ending = jnp.where(place == length, END, PAD)
    turned = jnp.take_along_axis(letters, jnp.maximum(length - 1 - place, 0), axis=1)
    return jnp.where(place < length, letters, ending), jnp.where(place < length, turned, ending)


def in_letters(ids):
    return "".join(names[i] for i in ids if i >= FIRST)


sources, targets = examples(jax.random.key(1), 3)
for row in range(3):
    print(f"{in_letters(sources[row]):8} -> {in_letters(targets[row])}")

# %% [markdown]
# teacher_forcing


# %%
def shift(targets):
    return jnp.concatenate([jnp.full((len(targets), 1), START), targets[:, :-1]], axis=1)


print("the decoder reads ", *(names[i] for i in shift(targets)[0]))
print("and is to predict ", *(names[i] for i in targets[0]))

# %% [markdown]
# model

# %%
from jaxformer.families import build_model, model_config
from jaxformer.models import TransformerConfig

sizes = {"type": "t5", "vocab_size": V, "hidden_size": 64, "num_layers": 1, "num_heads": 4, "head_size": 16}
sizes |= {"intermediate_size": 128, "max_length": 16, "dropout": 0.0, "attention_dropout": 0.0}
sizes |= {"pad_token_id": PAD, "decoder_start_token_id": START, "eos_token_id": END}
model = build_model(TransformerConfig(**model_config(sizes)))


def forward(params, sources, targets, **options):
    return model.apply({"params": params}, sources, sources != PAD, decoder_input_ids=shift(targets), **options)


params = model.init(jax.random.key(0), sources, sources != PAD, decoder_input_ids=shift(targets))["params"]
print(f"{sum(array.size for array in jax.tree.leaves(params)):,} parameters")

steps = 800
optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 100, steps))
state = optimizer.init(params)


def loss(params, sources, targets):
    sums = F.cross_entropy(forward(params, sources, targets).logits, jnp.where(targets == PAD, F.IGNORE, targets))
    return sums.total / sums.tokens


@jax.jit
def step(params, state, key):
    value, gradient = jax.value_and_grad(loss)(params, *examples(key, 128))
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value


losses = []
for number in range(steps):
    params, state, value = step(params, state, jax.random.key(100 + number))
    losses.append(float(value))
print(f"loss {losses[0]:.2f} at first (log {V} is {np.log(V):.2f}), {losses[-1]:.4f} at the end")
plot.learning_curves({"reversing letters": (range(steps), losses)})

# %% [markdown]
# looks

# %%
word = [names.index(letter) for letter in "reversal"]
one, turned = jnp.array([[*word, END]]), jnp.array([[*word[::-1], END]])
output = forward(params, one, turned, output_attentions=True)
read = [names[i] for i in shift(turned)[0]]
plot.attention(output.cross_attentions[0][0], read, [names[i] for i in one[0]], title="Cross-attention")

# %%
mean = output.cross_attentions[0][0].mean(axis=0)
for place in range(len(word)):
    assert mean[place].argmax() == len(word) - 1 - place
weight = mean[jnp.arange(len(word)), len(word) - 1 - jnp.arange(len(word))].mean()
print(f"{weight:.0%} of the weight is on the letter that is to be written")

before = output.decoder_attentions[0][0]
assert jnp.array_equal(before, jnp.tril(before))
later = forward(params, one, turned.at[0, 5].set(END))
assert jnp.allclose(later.logits[:, :6], output.logits[:, :6], atol=1e-5)
print("the decoder's own attention has no weight on what follows, and its logits do not depend on it")

# %% [markdown]
# step_by_step

# %%
from jaxformer.models import init_cache

variables = {"params": params}
context = model.apply(variables, one, one != PAD, method="encode")
cache, token, written, logits = init_cache(model.config, 1, longest + 1), jnp.array([[START]]), [], []
for _ in range(longest + 1):
    hidden, cache = model.apply(variables, context, token, cache=cache, method="decode")
    logits.append(model.apply(variables, hidden, method="logits"))
    token = logits[-1].argmax(axis=-1)
    written.append(int(token[0, 0]))
    if written[-1] == END:
        break

print(in_letters(one[0]), "->", in_letters(written))
full = forward(params, one, jnp.array([written])).logits
assert jnp.allclose(jnp.concatenate(logits, axis=1), full, atol=1e-4)
print("largest difference to one full forward pass", jnp.abs(jnp.concatenate(logits, axis=1) - full).max())

# %% [markdown]
# generate

# %%
import jaxformer

sources, targets = examples(jax.random.key(7), 500)
result = jaxformer.generate(model, params, sources, sources != PAD, max_new_tokens=longest + 1)
right = [in_letters(ours) == in_letters(wanted) for ours, wanted in zip(np.array(result.tokens), np.array(targets))]
print(f"{sum(right)} of {len(right)} new strings are reversed without a mistake")
for row in range(3):
    print(f"{in_letters(sources[row]):8} -> {in_letters(result.tokens[row])}")

# %% [markdown]
# summary
