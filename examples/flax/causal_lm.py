"""Causal language modelling (Radford et al. 2018, equation 1) on lines of text.

    python examples/flax/causal_lm.py --config_name FOLDER --train_file texts.txt --output_dir gpt2

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

from jaxformer.flax_names import FlaxAutoModelForCausalLM


def blocks(tokenizer: Any, texts: Sequence[str], length: int) -> dict[str, list[list[int]]]:
    """All texts one after the other, each with its end, cut into blocks of ``length`` tokens."""
    ended = [text + (tokenizer.eos_token or "") for text in texts]
    ids = list(chain.from_iterable(tokenizer(ended)["input_ids"]))
    return {"input_ids": [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]}


def collate(rows: Mapping[str, Any]) -> shared.Batch:
    """The arrays of some rows; the labels are the tokens themselves, which ``loss`` shifts."""
    ids = np.array(rows["input_ids"], np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}


def loss(call: Any, batch: shared.Batch) -> tuple[Any, Any]:
    """The loss of each token given those before it."""
    labels = batch.pop("labels")
    return shared.cross_entropy(call(**batch)[0][:, :-1], labels[:, 1:])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; the results."""
    parser = shared.arguments("Trains a causal language model.")
    parser.add_argument("--block_size", type=int, default=128, help="tokens of a row")
    options = parser.parse_args(arguments)
    tokenizer = shared.open_tokenizer(options)
    model = shared.open_model(options, FlaxAutoModelForCausalLM)
    data = shared.open_data(options).map(
        lambda rows: blocks(tokenizer, rows["text"], options.block_size), batched=True, remove_columns=["text"]
    )
    params, losses = shared.fit(options, model, data["train"], collate, loss)
    eval_loss = shared.evaluate(options, model, params, data["validation"], collate, loss)
    results = {"losses": losses, "eval_loss": eval_loss, "perplexity": math.exp(min(eval_loss, 100.0))}
    shared.save(options, model, params, tokenizer, results)
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
