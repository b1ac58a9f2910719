"""One training step of the same BERT in jaxformer and in PyTorch ``transformers``, on the CPU of this machine.

    python benchmarks/bert_step.py                      # jaxformer alone
    pip install -e ".[benchmark]" && python benchmarks/bert_step.py --compare torch [--markdown]

A step is forward pass, masked-language-model loss, backward pass, clipping to global norm 1 and AdamW (learning rate
1e-3, betas 0.9 and 0.99, decay 0.1 on the matrices except the embeddings), float32, no dropout. 15 % of the tokens of
every row are predicted (rounded to a whole number of them); nothing is padded, so no side is given a mask.

- jaxformer: the step of its training loop with its masked-language-model objective, which computes the head (dense
  layer, norm and the product with the vocabulary) for the tokens that are predicted and for no other.
- Hugging Face: ``BertForMaskedLM`` as it comes with labels, fused attention (``sdpa``). It computes the head for all
  tokens, and the loss leaves out those whose label is -100.
- Hugging Face, predicted tokens: the same model, but the step written by hand so that it does what jaxformer does: the
  body's states at the predicted places are taken out before the head. It is the fairest peer, since what it lacks
  against the one before is the work on logits that no loss reads.

Both peers as they are (eager) and with ``torch.compile`` over forward pass and loss. jaxformer tells the C library to
keep freed memory; a peer is tried both ways and takes part with the faster one.

All start from the same weights and batch, and their losses over the first steps must agree before anything is timed.
Each runs in a process of its own; they take turns, so that a slow minute of the machine falls on all of them.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import _compare
import numpy as np
from _compare import JAXFORMER, TINY, Benchmark, Shape, Step
from _steps import Arrays, jaxformer_step, torch_step

SHAPES = {
    TINY: Shape(2, 16, 2, 8, 2, 11),
    "base4": Shape(4, 256, 4, 64, 32, 8_000),
}
PEERS = {
    "predicted_compiled": "Hugging Face, predicted tokens, torch.compile",
    "predicted": "Hugging Face, predicted tokens, PyTorch eager",
    "all_compiled": "Hugging Face, torch.compile",
    "all": "Hugging Face, PyTorch eager",
}
PREDICTED_SHARE, MASK_ID, IGNORE = 0.15, 0, -100


def make_batch(shape: Shape) -> Arrays:
    """Random tokens of which some are masked, as jaxformer's objective takes them: places and labels ``[B, M]``."""
    random = np.random.default_rng(0)
    tokens = random.integers(MASK_ID + 1, shape.vocabulary, size=(shape.batch, shape.length), dtype=np.int32)
    predicted = max(1, round(PREDICTED_SHARE * shape.length))
    places = np.sort(random.random(tokens.shape).argsort(axis=1)[:, :predicted], axis=1).astype(np.int32)
    labels = np.take_along_axis(tokens, places, axis=1)
    np.put_along_axis(tokens, places, MASK_ID, axis=1)
    return {"input_ids": tokens, "masked_positions": places, "labels": labels}


def labels_everywhere(batch: Arrays) -> Arrays:
    """The batch as ``BertForMaskedLM`` takes it: a label for every token, -100 at those that are not predicted."""
    labels = np.full_like(batch["input_ids"], IGNORE)
    np.put_along_axis(labels, batch["masked_positions"], batch["labels"], axis=1)
    return {"input_ids": batch["input_ids"], "labels": labels}


def places_in_all_rows(batch: Arrays) -> Arrays:
    """The batch with the predicted places counted through all rows, ``[B M]``: the cheapest to take out in PyTorch."""
    B, T = batch["input_ids"].shape
    places = batch["masked_positions"] + T * np.arange(B)[:, None]
    return {"input_ids": batch["input_ids"], "places": places.ravel(), "labels": batch["labels"].ravel()}


def hugging_face_bert(shape: Shape) -> Any:
    """``BertForMaskedLM`` without dropout; no token is padding, whose embedding PyTorch would not train."""
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=shape.vocabulary,
            max_position_embeddings=shape.length,
            hidden_size=shape.width,
            intermediate_size=4 * shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=None,
            attn_implementation="sdpa",
        )
    )


def build(predicted_only: bool, shape: Shape, weights: dict[str, Any]) -> tuple[Any, Callable[..., Any]]:
    """PyTorch's model with the weights given, and its mean loss."""
    from torch.nn.functional import cross_entropy

    model = hugging_face_bert(shape)
    tied = {
        "cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": weights["cls.predictions.bias"],
    }
    model.load_state_dict({**weights, **tied})

    def loss_of_all(input_ids: Any, labels: Any) -> Any:
        return model(input_ids, labels=labels).loss

    def loss_of_predicted(input_ids: Any, places: Any, labels: Any) -> Any:
        states = model.bert(input_ids).last_hidden_state
        return cross_entropy(model.cls(states.flatten(0, 1).index_select(0, places)), labels)

    return model, loss_of_predicted if predicted_only else loss_of_all


def make_step(kind: str, shape: Shape, weights: Path) -> Step:
    """jaxformer's step or a peer's."""
    batch = make_batch(shape)
    if kind == JAXFORMER:
        model = {"type": "bert", "num_layers": shape.layers, "hidden_size": shape.width, "num_heads": shape.heads}
        sizes = {"intermediate_size": 4 * shape.width, "max_length": shape.length, "vocab_size": shape.vocabulary}
        return jaxformer_step({**model, **sizes, "dropout": 0.0, "attention_dropout": 0.0}, batch, weights)
    predicted_only = kind.startswith("predicted")
    batch = places_in_all_rows(batch) if predicted_only else labels_everywhere(batch)
    return torch_step(partial(build, predicted_only, shape), batch, weights, compiled=kind.endswith("compiled"))


def main() -> int:
    """The command line."""
    title = "One masked-language-model training step, float32"
    return _compare.main(Benchmark(__file__, title, SHAPES, PEERS, make_step))


if __name__ == "__main__":
    sys.exit(main())
