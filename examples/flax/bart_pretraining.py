"""Denoising (Lewis et al. 2020, section 2.2), the pre-training of BART: sentences in another order, spans hidden.

    python examples/flax/bart_pretraining.py --config_name FOLDER --train_file texts.txt --output_dir bart

``FOLDER`` holds a ``config.json`` and a tokenizer, as ``tokenizer.py`` trains one. With ``--model_name_or_path`` the
training begins with weights instead. A line is a document.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import shared

from jaxformer.flax_names import FlaxAutoModelForSeq2SeqLM, shift_tokens_right

Sentence = list[int]


def documents(tokenizer: Any, texts: Sequence[str], length: int) -> list[list[Sentence]]:
    """The sentences of each text as tokens, a new row where ``length`` places with both ends are full."""
    found: list[list[Sentence]] = []
    for text in texts:
        room = 0
        for sentence in re.split(r"(?<=[.!?])(?=\s)", text):
            ids = tokenizer(sentence, add_special_tokens=False)["input_ids"][: length - 2]
            if not ids:
                continue
            if len(ids) > room:
                found.append([])
                room = length - 2
            found[-1].append(ids)
            room -= len(ids)
    return found


class Denoising:
    """Puts sentences into another order, and hides spans of Poisson lengths, each behind one mask."""

    def __init__(self, tokenizer: Any, config: Any, options: Any) -> None:
        self.tokenizer, self.start, self.options = tokenizer, config.decoder_start_token_id, options
        self.random = np.random.default_rng(options.seed)

    def noisy(self, sentences: list[Sentence]) -> Sentence:
        """A row with its sentences in another order and spans hidden."""
        chosen = np.flatnonzero(self.random.random(len(sentences)) < self.options.permute_sentence_ratio)
        order = np.arange(len(sentences))
        order[chosen] = self.random.permutation(chosen)
        ids = list(chain(*(sentences[number] for number in order)))
        left = round(len(ids) * self.options.mlm_probability)
        mask = self.tokenizer.mask_token_id
        for span in np.minimum(self.random.poisson(self.options.poisson_lambda, 10 * len(ids)), left):
            # A span of length 0 is a mask where nothing is missing; hidden tokens are not hidden again.
            place = int(self.random.integers(len(ids) - min(span, len(ids)) + 1))
            if left >= span and mask not in ids[place : place + span]:
                ids[place : place + span] = [mask]
                left -= int(span)
            if left == 0:
                break
        return ids

    def framed(self, ids: Iterable[int], fill: int) -> np.ndarray:
        """``[T]``, a row with its ends, padded with ``fill``."""
        row = [self.tokenizer.bos_token_id, *ids, self.tokenizer.eos_token_id][: self.options.max_seq_length]
        return np.array(row + [fill] * (self.options.max_seq_length - len(row)), np.int32)

    def __call__(self, rows: Mapping[str, Any]) -> shared.Batch:
        """The arrays of some rows."""
        pad = self.tokenizer.pad_token_id
        inputs = np.stack([self.framed(self.noisy(sentences), pad) for sentences in rows["sentences"]])
        labels = np.stack([self.framed(chain(*sentences), shared.IGNORED) for sentences in rows["sentences"]])
        return {
            "input_ids": inputs,
            "attention_mask": (inputs != pad).astype(np.int32),
            "decoder_input_ids": np.asarray(shift_tokens_right(labels, pad, self.start)),
            "labels": labels,
        }


def loss(call: Any, batch: shared.Batch) -> tuple[Any, Any]:
    """The loss of the original's tokens."""
    labels = batch.pop("labels")
    return shared.cross_entropy(call(**batch)[0], labels)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; the results."""
    parser = shared.arguments("Trains BART to restore text.")
    parser.add_argument("--max_seq_length", type=int, default=512, help="places of a row")
    parser.add_argument("--mlm_probability", type=float, default=0.3, help="share of the tokens that are hidden")
    parser.add_argument("--permute_sentence_ratio", type=float, default=1.0, help="share of sentences that move")
    parser.add_argument("--poisson_lambda", type=float, default=3.0, help="mean length of a span")
    options = parser.parse_args(arguments)
    tokenizer = shared.open_tokenizer(options)
    model = shared.open_model(options, FlaxAutoModelForSeq2SeqLM)
    data = shared.open_data(options).map(
        lambda rows: {"sentences": documents(tokenizer, rows["text"], options.max_seq_length)},
        batched=True,
        remove_columns=["text"],
    )
    noise = Denoising(tokenizer, model.config, options)
    params, losses = shared.fit(options, model, data["train"], noise, loss)
    noise = Denoising(tokenizer, model.config, options)  # the same noise each time
    eval_loss = shared.evaluate(options, model, params, data["validation"], noise, loss)
    results = {"losses": losses, "eval_loss": eval_loss}
    shared.save(options, model, params, tokenizer, results)
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
