"""What the tests of the tasks share: tokenizers of bytes, documents, tiny models and modules that stand in for them."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxformer.data import TokenCache
from jaxformer.families import model_config
from jaxformer.models import TransformerConfig
from jaxformer.tokenizers import TokenizerConfig, add_special_tokens, give_frame, train_tokenizer

# Ids: the 256 bytes, then <|endoftext|> (256, the sep token), <pad> (257) and <s> (258, the cls token).
TOKENIZER = add_special_tokens(train_tokenizer(TokenizerConfig(type="byte"), ["a"]), ("pad", "cls", "sep"))
SEP, PAD, CLS = 256, 257, 258
# As a run's of an encoder with a head, and of an encoder-decoder: an end behind the text and nothing before it.
FRAMED, TWO_SIDED = copy.deepcopy(TOKENIZER), copy.deepcopy(TOKENIZER)
give_frame(FRAMED, "<s>", "<|endoftext|>")
FRAMED.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
give_frame(TWO_SIDED, None, "<|endoftext|>")
# Behind these <mask> (259) and the sentinels (260 to 359).
WITH_MASK = add_special_tokens(copy.deepcopy(TOKENIZER), ("mask",), sentinels=100)
MASK, SENTINEL, VOCABULARY = 259, 260, 360


class Output(NamedTuple):
    logits: Any = None
    start_logits: Any = None
    end_logits: Any = None


class Scores(nn.Module):
    """Scores of each token by a table, or their mean over the tokens that are there."""

    size: int
    pooled: bool

    @nn.compact
    def __call__(self, input_ids, attention_mask, token_type_ids, example_ids=None, deterministic=True):
        scores = self.param("table", nn.initializers.normal(1.0), (259, self.size))[input_ids]
        if not self.pooled:
            return Output(scores, scores[..., 0], scores[..., -1])
        # 0 / 0 in a row of padding, on purpose: whatever a model makes of one must not matter.
        mask = attention_mask[..., None]
        pooled = jnp.sum(scores * mask, axis=-2) / jnp.sum(mask, axis=-2)
        return Output(pooled[..., 0] if pooled.ndim == 3 else pooled)


def bytes_of(text):
    return list(text.encode())


def cache_of(*documents):
    """A split of these documents, each a list of ids or a text, with the end of text behind it."""
    ids = [[*(bytes_of(d) if isinstance(d, str) else d), SEP] for d in documents]
    offsets = np.cumsum([0, *map(len, ids)]).astype(np.int64)
    return TokenCache(Path(), np.array([i for d in ids for i in d], np.uint16), offsets)


def generators(count, seed=0):
    return [np.random.default_rng([seed, number]) for number in range(count)]


def features(task, data, indices=None, seed=0):
    """The features of rows of a split, all rows if none are named."""
    rows = task.rows(data)
    indices = np.arange(rows.num_rows) if indices is None else np.array(indices)
    return task.features(rows.take(indices), generators(len(indices), seed), rows)


def config_of(kind, **keys):
    """A model of a family, as small as can be."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "max_length": 64}
    still = {"dropout": 0.0, "attention_dropout": 0.0}
    return TransformerConfig(**model_config({"type": kind, **sizes, **still, **keys}))


def random_params(model, seed=0):
    """Far larger than an initialisation, norms and biases too, so that nothing hides behind being small or zero."""
    random = np.random.default_rng(seed)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.5, leaf.shape), jnp.float32), shapes)


def on_device(batch):
    return jax.tree.map(jnp.asarray, batch)
