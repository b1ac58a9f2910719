"""A GPT trained, evaluated and used by hand, in functions of trees and arrays; optax makes the update.

python examples/by_hand.py      # about a minute on two cores

``python train.py --config configs/gpt_nano.yaml`` does the same with all that a long run needs.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxformer import functional as F
from jaxformer.families import build_model, model_config
from jaxformer.models import TransformerConfig, init_cache
from jaxformer.tokenizers import TokenizerConfig, decode, encode, train_tokenizer, vocabulary_size

LENGTH, BATCH = 64, 16


def mean_loss(model: Any, params: Any, ids: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats of each next token of ``ids [B, T + 1]``."""
    loss = F.cross_entropy(model.apply({"params": params}, ids[:, :-1]).logits, ids[:, 1:])
    return loss.total / loss.tokens


def train(model: Any, params: Any, tokens: np.ndarray, steps: int) -> Any:
    """The parameters after ``steps`` updates by AdamW, each on random pieces of the text."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95, weight_decay=0.1))

    @jax.jit
    def step(params: Any, state: Any, ids: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, gradient = jax.value_and_grad(mean_loss, argnums=1)(model, params, ids)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, draw = optimizer.init(params), np.random.default_rng(0)
    for number in range(1, steps + 1):
        starts = draw.integers(0, len(tokens) - LENGTH, BATCH)[:, None]
        params, state, loss = step(params, state, jnp.asarray(tokens[starts + np.arange(LENGTH + 1)]))
        if number % 100 == 0:
            print(f"step {number}: loss {float(loss):.3f}")
    return params


def evaluate(model: Any, params: Any, tokens: np.ndarray) -> float:
    """Mean loss over a text, piece by piece; what does not fill a batch is left out."""
    rows = tokens[np.arange(0, len(tokens) - LENGTH, LENGTH)[:, None] + np.arange(LENGTH + 1)]
    loss = jax.jit(lambda params, ids: mean_loss(model, params, ids))
    batches = rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH, LENGTH + 1)
    return float(np.mean([loss(params, jnp.asarray(ids)) for ids in batches]))


def complete(model: Any, params: Any, tokenizer: Any, prompt: str, most: int = 60, temperature: float = 0.7) -> str:
    """The prompt and ``most`` sampled tokens; earlier keys and values are kept in a cache."""
    ids = jnp.array([encode(tokenizer, prompt)])
    cache, key, written = init_cache(model.config, 1, ids.shape[1] + most), jax.random.key(0), []
    step = jax.jit(lambda params, ids, cache: model.apply({"params": params}, ids, cache=cache, method="last_logits"))
    for number in range(most):
        logits, cache = step(params, ids, cache)
        ids = jax.random.categorical(jax.random.fold_in(key, number), logits / temperature)[:, None]
        written.append(int(ids[0, 0]))
    return prompt + decode(tokenizer, written)


if __name__ == "__main__":
    texts = [file.read_text(encoding="utf-8") for file in sorted(Path(json.__file__).parents[1].glob("*.py"))[:120]]
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=512), texts)
    tokens = np.array(encode(tokenizer, "\n".join(texts)))
    keys = {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "vocab_size": vocabulary_size(tokenizer)}
    model = build_model(TransformerConfig(**model_config(keys)))
    params = train(model, model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"], tokens[:-50_000], steps=900)
    print(f"validation loss {evaluate(model, params, tokens[-50_000:]):.3f}")
    print(complete(model, params, tokenizer, "import os\n\n\ndef "))
