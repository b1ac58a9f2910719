"""Masked language modelling (Devlin et al. 2019, section 3.1) on lines of text.

    python examples/flax/masked_lm.py --config_name FOLDER --train_file texts.txt --output_dir bert

``FOLDER`` holds a ``config.json`` and a tokenizer, as ``tokenizer.py`` trains one. With ``--model_name_or_path`` the
training begins with weights instead.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import shared

from jaxformer.flax_names import FlaxAutoModelForMaskedLM


def pieces(tokenizer: Any, texts: Sequence[str], length: int) -> dict[str, list[list[int]]]:
    """All texts one after the other, each with its special tokens, cut into rows of ``length`` tokens."""
    ids = list(chain.from_iterable(tokenizer(list(texts))["input_ids"]))
    return {"input_ids": [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]}


class Masking:
    """Hides tokens: of those chosen 80 % become the mask, 10 % another token, 10 % stay; only they are labels."""

    def __init__(self, tokenizer: Any, probability: float, seed: int) -> None:
        self.tokenizer, self.probability, self.random = tokenizer, probability, np.random.default_rng(seed)

    def __call__(self, rows: Mapping[str, Any]) -> shared.Batch:
        """The arrays of some rows."""
        ids = np.array(rows["input_ids"], np.int32)
        special = np.isin(ids, self.tokenizer.all_special_ids)
        chosen = (self.random.random(ids.shape) < self.probability) & ~special
        fate = self.random.random(ids.shape)
        others = self.random.integers(len(self.tokenizer), size=ids.shape)
        hidden = np.where(fate < 0.8, self.tokenizer.mask_token_id, np.where(fate < 0.9, others, ids))
        labels = np.where(chosen, ids, shared.IGNORED)
        return {
            "input_ids": np.where(chosen, hidden, ids).astype(np.int32),
            "attention_mask": np.ones_like(ids),
            "labels": labels.astype(np.int32),
        }


def loss(call: Any, batch: shared.Batch) -> tuple[Any, Any]:
    """The loss of the hidden tokens."""
    labels = batch.pop("labels")
    return shared.cross_entropy(call(**batch)[0], labels)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; the results."""
    parser = shared.arguments("Trains a masked language model.")
    parser.add_argument("--max_seq_length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--mlm_probability", type=float, default=0.15, help="share of the tokens that are hidden")
    options = parser.parse_args(arguments)
    tokenizer = shared.open_tokenizer(options)
    model = shared.open_model(options, FlaxAutoModelForMaskedLM)
    data = shared.open_data(options).map(
        lambda rows: pieces(tokenizer, rows["text"], options.max_seq_length),
        batched=True,
        remove_columns=["text"],
    )
    masking = Masking(tokenizer, options.mlm_probability, options.seed)
    params, losses = shared.fit(options, model, data["train"], masking, loss)
    masking = Masking(tokenizer, options.mlm_probability, options.seed)  # the same tokens each time
    eval_loss = shared.evaluate(options, model, params, data["validation"], masking, loss)
    results = {"losses": losses, "eval_loss": eval_loss, "perplexity": math.exp(min(eval_loss, 100.0))}
    shared.save(options, model, params, tokenizer, results)
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
