# %% [markdown]
# title

# %%
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import functional as F
from jaxformer import plot

# %% [markdown]
# mean

# %%
states = jax.random.normal(jax.random.key(0), (2, 5, 8))  # [B, T, D], the last states of an encoder
real = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])

mean = (states * real[..., None]).sum(axis=1) / real.sum(axis=1, keepdims=True)
embedding = mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)
print("cosine of the two texts:", embedding[0] @ embedding[1])

# %% [markdown]
# contrast

# %%
names = embedding  # the texts of a batch, and what each of them belongs to
documents = jax.random.normal(jax.random.key(1), (2, 8))
documents /= jnp.linalg.norm(documents, axis=-1, keepdims=True)

similar = names @ documents.T / 0.05
by_hand = -jnp.diagonal(jax.nn.log_softmax(similar, axis=1)).sum()
assert jnp.allclose(by_hand, F.cross_entropy(similar[None], jnp.arange(2)[None]).total, rtol=1e-5)
print("each text has to find its own among all of the batch: a cross-entropy")

# %% [markdown]
# data

# %%
import ast
import sysconfig
from pathlib import Path


def functions(folder):
    """Names of functions, as words, and the first sentence of what is said of them."""
    for path in sorted(Path(folder).glob("*.py")) + sorted(Path(folder).glob("[a-s]*/*.py")):
        if "test" in path.parts[-2] or path.parts[-2] in ("site-packages", "pydoc_data", "idlelib"):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            said, words = ast.get_docstring(node), node.name.strip("_").replace("_", " ")
            if said and " " in words:
                yield words, " ".join(said.split("\n\n")[0].split())[:100]


pairs = sorted(dict(functions(sysconfig.get_paths()["stdlib"])).items())
order = np.random.default_rng(0).permutation(len(pairs))
held_out, known = ([pairs[i] for i in part] for part in (order[:200], order[200:]))
print(f"{len(known)} functions to learn from, {len(held_out)} held out")
print(*known[:3], sep="\n")

# %% [markdown]
# train

# %%
import flax.linen as nn
import optax

from jaxformer.families import build_model, model_config
from jaxformer.models import TransformerConfig
from jaxformer.tokenizers import TokenizerConfig, encode_batch, train_tokenizer, vocabulary_size

tokenizer = train_tokenizer(TokenizerConfig(type="bpe", vocab_size=1500), [text for pair in known for text in pair])
size = vocabulary_size(tokenizer)
sizes = {"type": "bert", "vocab_size": size, "hidden_size": 64, "num_layers": 1, "num_heads": 4, "max_length": 32}
model = build_model(TransformerConfig(**model_config(sizes)))
params = nn.unbox(model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"])


def ids_of(texts):
    rows = np.zeros((len(texts), 32), np.int32)
    real = np.zeros_like(rows)
    for number, ids in enumerate(encode_batch(tokenizer, texts)):
        rows[number, : len(ids)], real[number, : len(ids)] = ids[:32], 1
    return rows, real


def embed(params, rows, real):
    states = model.apply({"params": params}, rows, real).last_hidden_state
    mean = (states * real[..., None]).sum(axis=1) / real.sum(axis=1, keepdims=True)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def loss_of(params, names, documents):
    similar = embed(params, *names) @ embed(params, *documents).T / 0.05
    own = jnp.arange(len(similar))[None]
    both = F.cross_entropy(similar[None], own).total + F.cross_entropy(similar.T[None], own).total
    return both / (2 * len(similar))


optimizer = optax.adam(2e-3)
state = optimizer.init(params)


@jax.jit
def step(params, state, names, documents):
    value, gradient = jax.value_and_grad(loss_of)(params, names, documents)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value


sides = [ids_of([pair[side] for pair in known]) for side in (0, 1)]
draw, losses = np.random.default_rng(1), []
for _ in range(400):
    chosen = draw.choice(len(known), 64, replace=False)
    params, state, value = step(params, state, *([array[chosen] for array in side] for side in sides))
    losses.append(float(value))
plot.learning_curves({"64 names find their sentences": (range(400), losses)})

# %% [markdown]
# search

# %%
find = jax.jit(embed)
sentences = [sentence for _, sentence in held_out]
index = find(params, *ids_of(sentences))


def search(query, most=3):
    scores = find(params, *ids_of([query]))[0] @ index.T
    best = np.argsort(-scores)[:most]
    return [(sentences[i], float(scores[i])) for i in best]


places = jnp.argsort(-(find(params, *ids_of([name for name, _ in held_out])) @ index.T), axis=1)
rank = jnp.argmax(places == jnp.arange(len(held_out))[:, None], axis=1)
for most in (1, 10):
    chance = most / len(held_out)
    print(f"the right sentence is among the first {most:2}: {(rank < most).mean():.0%} (by chance {chance:.1%})")
for query in ("read file", "remove directory", "convert string"):
    print(f"\n{query}:", *(f"  {score:.2f}  {text}" for text, score in search(query)), sep="\n")

# %% [markdown]
# answers

# %%
people, towns, QUESTION = 26, 26, 60
sizes = {"type": "llama", "vocab_size": 64, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4}
reader = build_model(TransformerConfig(**model_config({**sizes, "max_length": 16})))


def prompts(key, count):
    """A note "person, town", then the question where that person lives: ``[B, 4]``, and the answers."""
    who, where = jax.random.randint(key, (2, count), 0, towns)
    return jnp.stack([who, people + where, jnp.full(count, QUESTION), who], axis=1), people + where


weights = nn.unbox(reader.init(jax.random.key(2), jnp.zeros((1, 2), int))["params"])
optimizer = optax.adam(2e-3)
state = optimizer.init(weights)


@jax.jit
def learn(weights, state, key):
    def loss(weights):
        rows, answers = prompts(key, 128)
        sums = F.cross_entropy(reader.apply({"params": weights}, rows).logits[:, -1:], answers[:, None])
        return sums.total / sums.tokens

    value, gradient = jax.value_and_grad(loss)(weights)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(weights, updates), state, value


for number in range(300):
    weights, state, value = learn(weights, state, jax.random.key(number))

# A store of notes; each has a vector, here simply whom it is about.
store = [(person, people + town) for person, town in enumerate(np.random.default_rng(5).integers(0, towns, people))]
vectors = jnp.eye(people)


def answer(person, note):
    row = jnp.array([[*map(int, note), QUESTION, person]])
    return int(reader.apply({"params": weights}, row).logits[0, -1].argmax())


def found(person):
    return store[int(jnp.argmax(vectors @ vectors[person]))]


notes = {"the note that was found": found, "another note": lambda person: store[(person + 7) % people]}
for name, note in notes.items():
    right = sum(answer(person, note(person)) == store[person][1] for person in range(people))
    print(f"with {name}: {right} of {people} answers are right")

# %% [markdown]
# summary
