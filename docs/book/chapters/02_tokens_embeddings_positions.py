# %% [markdown]
# title

# %% [markdown]
# pieces

# %%
import itertools
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxformer import functional as F
from jaxformer import plot
from jaxformer.tokenizers import TokenizerConfig, decode, encode, train_tokenizer

people = {"나는": "I", "우리는": "we", "동생은": "my brother", "친구는": "my friend"}
places = {"학교에": "school", "시장에": "the market", "바다에": "the sea", "산에": "the mountain"}
times = {"어제": "yesterday", "오늘": "today", "아침에": "in the morning"}
verbs = {"갔다": "went to", "있었다": "was at", "왔다": "came to", "도착했다": "arrived at"}
made = list(itertools.product(people, times, places, verbs))
korean = [" ".join(parts) + "." for parts in made]
english = [f"{people[w]} {verbs[v]} {places[p]} {times[t]}." for w, t, p, v in made]

pair = {"Korean": "우리는 어제 바다에 갔다.", "English": "we went to the sea yesterday."}
tokenizers = {}
for kind, size in {"character": 1, "byte": 1, "word": 100, "bpe": 257 + 80, "jamo": 472 + 80}.items():
    tokenizer = train_tokenizer(TokenizerConfig(type=kind, vocab_size=size), korean + english)
    tokenizers[kind] = tokenizer
    counts = {language: len(encode(tokenizer, text)) for language, text in pair.items()}
    assert all(decode(tokenizer, encode(tokenizer, text)) == text for text in pair.values())
    print(
        f"{kind:9} vocabulary {len(tokenizer):3}:", ", ".join(f"{n:2} for {language}" for language, n in counts.items())
    )

# %% [markdown]
# by_hand

# %%
text = pair["Korean"]
assert encode(tokenizers["byte"], text) == list(text.encode("utf-8"))
letters = sorted(set("".join(korean + english)))
assert encode(tokenizers["character"], text) == [letters.index(letter) for letter in text]
print("바 is the bytes", list("바".encode()))

# %% [markdown]
# bpe

# %%
from collections import Counter

words = Counter(word for sentence in english for word in sentence.split())
splits = {word: list(word) for word in words}
for _ in range(3):
    pairs = Counter()
    for word, number in words.items():
        for left, right in zip(splits[word], splits[word][1:]):
            pairs[left, right] += number
    (left, right), number = pairs.most_common(1)[0]
    print(f"{left} + {right} occur {number} times: a new token {left + right!r}")
    for word, parts in splits.items():
        place = 0
        while place < len(parts) - 1:
            if (parts[place], parts[place + 1]) == (left, right):
                parts[place : place + 2] = [left + right]
            place += 1

for kind in ("bpe", "jamo"):
    print(f"{kind:4}", [decode(tokenizers[kind], [i]) for i in encode(tokenizers[kind], text)])

# %% [markdown]
# jamo

# %%
decomposed = unicodedata.normalize("NFD", "갔다")
print(len("갔다"), "syllables,", len(decomposed), "jamo:", [unicodedata.name(jamo)[7:] for jamo in decomposed])
assert unicodedata.normalize("NFC", decomposed) == "갔다"

initial, medial, final = (ord(jamo) - first for jamo, first in zip(decomposed, (0x1100, 0x1161, 0x11A7)))
assert chr(0xAC00 + (initial * 21 + medial) * 28 + final) == "갔"

endings = {verb: decode(tokenizers["jamo"], encode(tokenizers["jamo"], verb)[-1:]) for verb in ("갔다", "왔다", "섰다")}
print("last tokens:", endings)

unseen = "너는 밤에 섰다."
for kind in ("word", "character", "bpe", "jamo"):
    back = decode(tokenizers[kind], encode(tokenizers[kind], unseen), skip_special_tokens=False)
    print(f"{kind:9} {len(encode(tokenizers[kind], unseen)):2} tokens: {back}")

# %% [markdown]
# embedding

# %%
V, D = 6, 4
table = jax.random.normal(jax.random.key(0), (V, D))
ids = jnp.array([2, 5, 2, 0])

rows = table[ids]
products = jax.nn.one_hot(ids, V) @ table
assert jnp.array_equal(rows, products)

from jaxformer.families import build_model, model_config
from jaxformer.models import TransformerConfig

sizes = {"type": "llama", "vocab_size": V, "hidden_size": D, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1}
model = build_model(TransformerConfig(**model_config({**sizes, "max_length": 8})))
params = model.init(jax.random.key(1), ids[None])["params"]
output = model.apply({"params": params}, ids[None], output_hidden_states=True)
assert jnp.array_equal(output.hidden_states[0][0], params["embeddings"]["token"]["embedding"].unbox()[ids])

gradient = jax.grad(lambda table: table[ids].sum())(table)
print("times that each row was looked up:", gradient[:, 0].astype(int))
arriving = jax.random.normal(jax.random.key(2), rows.shape)
gradient = jax.grad(lambda table: (table[ids] * arriving).sum())(table)
assert jnp.allclose(gradient, jax.nn.one_hot(ids, V).T @ arriving)

# %% [markdown]
# word2vec

# %%
classes = {
    "animal": ["dog", "cat", "horse", "cow", "sheep", "goat"],
    "city": ["paris", "rome", "madrid", "berlin", "seoul", "tokyo"],
    "country": ["france", "italy", "spain", "germany", "korea", "japan"],
    "food": ["bread", "rice", "soup", "cheese", "apples", "noodles"],
}
templates = [
    "the {animal} and the {animal} sleep in the barn",
    "the {animal} runs after the {animal}",
    "the farmer feeds the {animal}",
    "we take the train to {city} at noon",
    "the streets of {city} are busy",
    "{city} and {city} are large cities",
    "the people of {country} vote today",
    "the borders of {country} and {country} are open",
    "{country} exports goods to {country}",
    "we eat {food} with {food} for dinner",
    "she cooks {food} in a pot",
    "they buy {food} and {food} at the shop",
]
draw = np.random.default_rng(0)


def fill(template):
    return [str(draw.choice(classes[word[1:-1]])) if word[0] == "{" else word for word in template.split()]


sentences = [fill(templates[draw.integers(len(templates))]) for _ in range(600)]
vocabulary = sorted(set(itertools.chain(*sentences)))
number_of = {word: number for number, word in enumerate(vocabulary)}
pairs = np.array(
    [
        (number_of[word], number_of[sentence[other]])
        for sentence in sentences
        for place, word in enumerate(sentence)
        for other in range(max(0, place - 3), min(len(sentence), place + 4))
        if other != place
    ]
)
print(f"{len(sentences)} sentences, {len(vocabulary)} words, {len(pairs):,} pairs of a word and a neighbour")
print(" ".join(sentences[0]), "|", " ".join(sentences[1]))

# %% [markdown]
# negative_sampling


# %%
def scores(tables, word, others):
    return jnp.einsum("bd,bkd->bk", tables["word"][word], tables["neighbour"][others])


def loss(tables, word, neighbour, noise):
    true, false = scores(tables, word, neighbour[:, None]), scores(tables, word, noise)
    return -(jax.nn.log_sigmoid(true).sum() + jax.nn.log_sigmoid(-false).sum())


V, D, K, batch = len(vocabulary), 16, 5, 512
keys = jax.random.split(jax.random.key(0), 2)
tables = {name: 0.1 * jax.random.normal(key, (V, D)) for name, key in zip(("word", "neighbour"), keys)}
word, neighbour = jnp.array(pairs[:batch]).T
noise = jax.random.randint(jax.random.key(1), (batch, K), 0, V)

logits = scores(tables, word, jnp.concatenate([neighbour[:, None], noise], axis=1))
labels = jnp.zeros((batch, 1 + K), int).at[:, 0].set(1)
ours = loss(tables, word, neighbour, noise)
assert jnp.allclose(ours, optax.sigmoid_binary_cross_entropy(logits, labels).sum(), rtol=1e-5)
assert jnp.allclose(ours, F.binary_cross_entropy(logits, labels).total, rtol=1e-5)
print(f"{ours / batch:.3f} nats a pair at first; (1 + {K}) log 2 is {(1 + K) * np.log(2):.3f}")

# %% [markdown]
# word2vec_training

# %%
frequency = jnp.bincount(jnp.array(pairs[:, 1]), length=V) ** 0.75
optimizer = optax.adam(0.01)


@jax.jit
def train(tables, all_pairs):
    def step(carry, key):
        tables, state = carry
        which, drawn = jax.random.split(key)
        word, neighbour = all_pairs[jax.random.randint(which, (batch,), 0, len(all_pairs))].T
        noise = jax.random.categorical(drawn, jnp.log(frequency), shape=(batch, K))
        value, gradient = jax.value_and_grad(loss)(tables, word, neighbour, noise)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(tables, updates), state), value / batch

    steps = jax.random.split(jax.random.key(2), 2000)
    (tables, _), losses = jax.lax.scan(step, (tables, optimizer.init(tables)), steps)
    return tables, losses


tables, losses = train(tables, jnp.array(pairs))
print(f"loss {losses[0]:.2f} nats a pair at first, {losses[-100:].mean():.2f} at the end")

chosen = [name for names in classes.values() for name in names]
vectors = tables["word"][jnp.array([number_of[name] for name in chosen])]
vectors = vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
plot.embeddings(vectors, chosen, title="word2vec: words that stand in the same places lie together")

# %%
class_of = np.repeat(list(classes), [len(names) for names in classes.values()])
cosines = np.array(vectors @ vectors.T)
np.fill_diagonal(cosines, -1)
for name in ("cat", "seoul", "korea", "rice"):
    nearest = np.argsort(-cosines[chosen.index(name)])[:3]
    print(f"{name}: " + ", ".join(f"{chosen[i]} {cosines[chosen.index(name), i]:.2f}" for i in nearest))
same = class_of[cosines.argmax(axis=1)] == class_of
print(f"the nearest neighbour is of the same kind for {same.sum()} of {len(chosen)} words")

# %% [markdown]
# sinusoidal

# %%
T, D = 64, 32
place, pair_of = jnp.arange(T)[:, None], jnp.arange(0, D, 2)
angles = place / 10_000 ** (pair_of / D)
by_hand = jnp.zeros((T, D)).at[:, 0::2].set(jnp.sin(angles)).at[:, 1::2].set(jnp.cos(angles))

encoding = F.sinusoidal_positions(jnp.arange(T), D)
assert jnp.allclose(by_hand, encoding, atol=1e-5)
products = encoding @ encoding.T
assert jnp.allclose(products[10, 15], products[40, 45], atol=1e-4)
print(f"product of positions 10 and 15: {products[10, 15]:.3f}, of 40 and 45: {products[40, 45]:.3f}")
plot.positions(encoding, title="Sinusoidal positions")

# %% [markdown]
# rotary

# %%
H = 8
query, key = jax.random.normal(jax.random.key(3), (2, H))
frequencies = 10_000.0 ** (-jnp.arange(0, H, 2) / H)


def rotate(x, place):
    turned = (x[: H // 2] + 1j * x[H // 2 :]) * jnp.exp(1j * place * frequencies)
    return jnp.concatenate([turned.real, turned.imag])


def library_rotate(x, place):
    return F.apply_rotary(x[None, None, None], F.rotary_angles(jnp.array([[place]]), F.rotary_frequencies(H)))[0, 0, 0]


assert jnp.allclose(rotate(query, 7), library_rotate(query, 7), atol=1e-5)
assert jnp.allclose(jnp.linalg.norm(rotate(query, 7)), jnp.linalg.norm(query))
near, far, other = (rotate(query, t) @ rotate(key, s) for t, s in ((5, 2), (105, 102), (5, 4)))
assert jnp.allclose(near, far, atol=1e-3)
print(f"score at places 5 and 2: {near:.3f}, at 105 and 102: {far:.3f}, at 5 and 4: {other:.3f}")
plot.positions(F.rotary_angles(jnp.arange(64)[None], F.rotary_frequencies(32)))

# %% [markdown]
# biases

# %%
distance = jnp.arange(16)[None, :] - jnp.arange(16)[:, None]  # key minus query
slopes = 2.0 ** (-8 * jnp.arange(1, 5) / 4)
by_hand = -slopes[:, None, None] * jnp.abs(distance)
assert jnp.allclose(by_hand, F.alibi_bias(distance[None], num_heads=4)[0])
plot.positions(by_hand, title="ALiBi: a penalty for distance, a slope a head")

# %%
some = jnp.array([0, -1, -7, -8, -15, -16, -50, -127, -128, -1000, 1, 1000])
buckets = F.relative_buckets(some, bidirectional=True)
print("bucket of each distance:", dict(zip(some.tolist(), buckets.tolist())))

learned = jax.random.normal(jax.random.key(4), (32, 2))
distance = F.Mask().distance(48, 48)
by_hand = learned[F.relative_buckets(distance, bidirectional=True)].transpose(0, 3, 1, 2)
assert jnp.array_equal(by_hand, F.relative_bias(learned, distance, bidirectional=True))
plot.positions(by_hand, title="T5: a number for each bucket of distances, here random")

# %% [markdown]
# summary
