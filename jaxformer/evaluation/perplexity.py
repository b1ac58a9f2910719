"""Perplexity and bits per byte of a text, in overlapping windows."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from jaxformer.generation.scoring import score, windows
from jaxformer.schema import UserError


@dataclass(frozen=True)
class Perplexity:
    """What a model says of some texts.

    Attributes:
        nats: sum of ``-log p`` of all tokens that are predicted.
        tokens: number of these.
        bytes: of the texts in UTF-8, that are predicted.
        characters: likewise.
    """

    nats: float
    tokens: int
    bytes: int
    characters: int

    @property
    def perplexity(self) -> float:
        """``exp(nats / tokens)``; it depends on the tokenizer."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """``nats / (ln 2 bytes)``, by which models with different tokenizers can be compared.

        Gao et al. 2020, "The Pile", section 3.1.
        """
        return self.nats / math.log(2) / self.bytes


def perplexity(
    pipe: Any, texts: Iterable[str], stride: int | None = None, progress: Callable[[int], None] = lambda tokens: None
) -> Perplexity:
    """The perplexity of texts, each by itself.

    Args:
        pipe: of text generation.
        texts: to predict.
        stride: tokens from one window to the next; default: half of what the model reads.
        progress: called with the number of tokens that are done.

    Raises:
        UserError: there is nothing to predict, or the stride makes no sense.
    """
    length = pipe.model.config.max_length
    stride = max(1, length // 2) if stride is None else stride
    begin, nats, tokens, size, characters = pipe.tokenizer.bos_token_id, 0.0, 0, 0, 0
    for text in texts:
        options = {"truncation": False, "add_special_tokens": False}
        ids = pipe.tokenize([text], **options)[0].inputs["input_ids"] if text else []
        predicted, whole = windows(ids, begin, length, stride), text
        if not predicted:
            continue
        if begin is None:
            # The first token is not predicted, and its bytes do not count.
            whole = pipe.tokenizer.decode(ids[1:], skip_special_tokens=False)
        for one in score(pipe.model, pipe.params, predicted):
            nats -= one.total
            tokens += len(one.log_probs)
        size, characters = size + len(whole.encode()), characters + len(whole)
        progress(tokens)
    if not tokens or not size:
        raise UserError("the text has no token to predict, expected at least two tokens")
    return Perplexity(nats, tokens, size, characters)
