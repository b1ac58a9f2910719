"""Makes docs/pictures/attention.png: a head that looks for what followed the same letter before.

python docs/pictures/make_attention.py

Trains two layers on letters in a random order that repeats, in 20 seconds on two cores. A head of the first layer tells
every place which letter is before it; by that a head of the second layer finds what followed the same letter: an
induction head (Olsson et al. 2022, "In-context Learning and Induction Heads").
"""

import string
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxformer import functional as F
from jaxformer import plot
from jaxformer.families import build_model, model_config
from jaxformer.models import TransformerConfig

LENGTH, BATCH, STEPS = 24, 64, 1000
LETTERS = string.ascii_lowercase
KEYS = {"type": "gpt2", "hidden_size": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 26, "max_length": LENGTH}


def repeated(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows of 4 to 12 different letters that repeat, and the labels: the next letter from the first repetition on."""
    order, lengths = jax.random.split(key)
    letters = jnp.argsort(jax.random.uniform(order, (BATCH, 26)), axis=1)
    period = jax.random.randint(lengths, (BATCH, 1), 4, 13)
    place = jnp.arange(LENGTH)[None]
    ids = jnp.take_along_axis(letters, place % period, axis=1)
    known = (place >= period - 1) & (place < LENGTH - 1)
    return ids, jnp.where(known, jnp.roll(ids, -1, axis=1), F.IGNORE)


def main() -> None:
    """Trains, and draws the head of the last layer that looks most at what followed."""
    model = build_model(TransformerConfig(**model_config(KEYS)))
    params = nn.unbox(model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"])
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 100, STEPS))

    def mean_loss(params: dict, ids: jax.Array, labels: jax.Array) -> jax.Array:
        loss = F.cross_entropy(model.apply({"params": params}, ids).logits, labels)
        return loss.total / loss.tokens

    @jax.jit
    def step(params: dict, state: optax.OptState, number: int) -> tuple[dict, optax.OptState, jax.Array]:
        loss, gradient = jax.value_and_grad(mean_loss)(params, *repeated(jax.random.key(number)))
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state = optimizer.init(params)
    for number in range(STEPS):
        params, state, loss = step(params, state, number)
    print(f"loss {float(loss):.4f}")

    text = "jaxform" * 3
    ids = jnp.array([[LETTERS.index(letter) for letter in text]])
    output = model.apply({"params": params}, ids, output_attentions=True)
    followed = jnp.arange(7, len(text) - 1)
    best = int(jnp.argmax(output.attentions[1][0][:, followed, followed - 6].mean(axis=1)))
    title = "A letter looks at what followed it before"
    figure = plot.attention(output.attentions[1][0], list(text), heads=[best], title=title)
    figure.savefig(Path(__file__).parent / "attention.png", dpi=100)


if __name__ == "__main__":
    main()
