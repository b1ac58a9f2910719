"""Span corruption (Raffel et al. 2020, section 3.1.4), the pre-training of T5, on lines of text.

    python examples/flax/t5_pretraining.py --config_name FOLDER --train_file texts.txt --output_dir t5

``FOLDER`` holds a ``config.json`` and a tokenizer with the sentinels ``<extra_id_0>`` ..., as ``tokenizer.py`` trains
one. With ``--model_name_or_path`` the training begins with weights instead.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import shared

from jaxformer.flax_names import FlaxAutoModelForSeq2SeqLM, shift_tokens_right


def span_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """How many of ``length`` tokens are hidden, and in how many spans."""
    hidden = min(max(round(length * density), 1), length - 1)
    return hidden, min(max(round(hidden / mean_span), 1), length - hidden)


def raw_length(inputs_length: int, density: float, mean_span: float) -> int:
    """The most tokens whose shown part, with a sentinel a span and the end token, has ``inputs_length`` places."""
    length = 2
    while True:
        hidden, spans = span_counts(length + 1, density, mean_span)
        if length + 1 - hidden + spans + 1 > inputs_length:
            return length
        length += 1


def cut(random: np.random.Generator, total: int, parts: int) -> np.ndarray:
    """``total`` as a sum of ``parts`` numbers from 1 on, all such sums alike probable."""
    borders = np.sort(random.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff([0, *borders, total])


class SpanCorruption:
    """Hides spans: the input has a sentinel in place of each, the target each sentinel and what it stands for."""

    def __init__(self, tokenizer: Any, config: Any, density: float, mean_span: float, seed: int) -> None:
        self.density, self.mean_span, self.random = density, mean_span, np.random.default_rng(seed)
        self.end, self.start, self.pad = tokenizer.eos_token_id, config.decoder_start_token_id, tokenizer.pad_token_id
        known = tokenizer.get_vocab()
        self.sentinels = [known[name] for i in range(len(known)) if (name := f"<extra_id_{i}>") in known]

    def pair(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """The input and the target of one row, which begins with a part that is shown."""
        hidden, spans = span_counts(len(ids), self.density, self.mean_span)
        if spans > len(self.sentinels):
            raise SystemExit(f"the tokenizer has {len(self.sentinels)} sentinels <extra_id_0> ..., expected {spans}")
        shown, target, place = [], [], 0
        lengths = zip(cut(self.random, len(ids) - hidden, spans), cut(self.random, hidden, spans), strict=True)
        for sentinel, (before, inside) in zip(self.sentinels, lengths, strict=False):
            shown += [*ids[place : place + before], sentinel]
            target += [sentinel, *ids[place + before : place + before + inside]]
            place += before + inside
        return [*shown, self.end], [*target, self.end]

    def __call__(self, rows: Mapping[str, Any]) -> shared.Batch:
        """The arrays of some rows, which all have the same lengths."""
        pairs = [self.pair(ids) for ids in rows["input_ids"]]
        inputs, labels = (np.array(side, np.int32) for side in zip(*pairs, strict=True))
        shifted = np.asarray(shift_tokens_right(labels, self.pad, self.start))
        return {"input_ids": inputs, "labels": labels, "decoder_input_ids": shifted}


def loss(call: Any, batch: shared.Batch) -> tuple[Any, Any]:
    """The loss of the target's tokens."""
    labels = batch.pop("labels")
    return shared.cross_entropy(call(**batch)[0], labels)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; the results."""
    parser = shared.arguments("Trains T5 on text with hidden spans.", learning_rate=5e-3)
    parser.add_argument("--max_seq_length", type=int, default=512, help="places of an input")
    parser.add_argument("--mlm_probability", type=float, default=0.15, help="share of the tokens that are hidden")
    parser.add_argument("--mean_noise_span_length", type=float, default=3.0, help="tokens of a span")
    options = parser.parse_args(arguments)
    tokenizer = shared.open_tokenizer(options)
    model = shared.open_model(options, FlaxAutoModelForSeq2SeqLM)
    length = raw_length(options.max_seq_length, options.mlm_probability, options.mean_noise_span_length)

    def rows(texts: Mapping[str, Any]) -> dict[str, list[list[int]]]:
        ids = list(chain.from_iterable(tokenizer(texts["text"], add_special_tokens=False)["input_ids"]))
        return {"input_ids": [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]}

    data = shared.open_data(options).map(rows, batched=True, remove_columns=["text"])
    spans = (options.mlm_probability, options.mean_noise_span_length, options.seed)
    corruption = SpanCorruption(tokenizer, model.config, *spans)
    params, losses = shared.fit(options, model, data["train"], corruption, loss)
    corruption = SpanCorruption(tokenizer, model.config, *spans)  # the same spans each time
    eval_loss = shared.evaluate(options, model, params, data["validation"], corruption, loss)
    results = {"losses": losses, "eval_loss": eval_loss}
    shared.save(options, model, params, tokenizer, results)
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
