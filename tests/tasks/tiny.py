"""What the tests of the tasks share: a tokenizer of bytes and modules that stand in for models."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from jaxformer.tokenizers import TokenizerConfig, train_tokenizer

# Ids: the 256 bytes, then <|endoftext|> (256, the sep token), <pad> (257) and <s> (258, the cls token).
TOKENIZER = train_tokenizer(TokenizerConfig(type="byte"), ["a"]).with_special_tokens(("pad", "cls", "sep"))
SEP, PAD, CLS = 256, 257, 258


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
