"""Summaries, or any text written from another, by an encoder-decoder (Lewis et al. 2020, section 5.3).

    python examples/flax/summarization.py --model_name_or_path t5 --source_prefix "summarize: " \\
        --train_file rows.csv --text_column document --summary_column summary --output_dir summarizer

The measure is ROUGE (Lin 2004) of what beam search writes.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import shared

from jaxformer.flax_names import FlaxAutoModelForSeq2SeqLM, shift_tokens_right
from jaxformer.tasks import metrics


def collate(tokenizer: Any, config: Any, lengths: tuple[int, int], rows: Mapping[str, Any]) -> shared.Batch:
    """The arrays of some rows."""
    pad, start = tokenizer.pad_token_id, config.decoder_start_token_id
    labels = np.full((len(rows["labels"]), lengths[1]), shared.IGNORED, np.int32)
    inputs = np.full((len(labels), lengths[0]), pad, np.int32)
    for row, (source, target) in enumerate(zip(rows["input_ids"], rows["labels"], strict=True)):
        inputs[row, : len(source)], labels[row, : len(target)] = source, target
    real = np.arange(lengths[0]) < np.array([len(source) for source in rows["input_ids"]])[:, None]
    return {
        "input_ids": inputs,
        "attention_mask": real.astype(np.int32),
        "decoder_input_ids": np.asarray(shift_tokens_right(labels, pad, start)),
        "decoder_attention_mask": (labels != shared.IGNORED).astype(np.int32),
        "labels": labels,
    }


def loss(call: Any, batch: shared.Batch, *, smoothing: float = 0.0) -> tuple[Any, Any]:
    """The loss of the summaries' tokens, with label smoothing."""
    labels = batch.pop("labels")
    return shared.cross_entropy(call(**batch)[0], labels, smoothing)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; the results."""
    parser = shared.arguments("Trains a model that summarizes.")
    parser.add_argument("--text_column", default="document")
    parser.add_argument("--summary_column", default="summary")
    parser.add_argument("--source_prefix", default="", help="put before each text, as T5 was trained with")
    parser.add_argument("--max_source_length", type=int, default=512, help="tokens of a text")
    parser.add_argument("--max_target_length", type=int, default=64, help="tokens of a summary")
    parser.add_argument("--num_beams", type=int, default=1, help="of the search when summaries are written")
    parser.add_argument("--label_smoothing_factor", type=float, default=0.0)
    options = parser.parse_args(arguments)
    tokenizer = shared.open_tokenizer(options)
    model = shared.open_model(options, FlaxAutoModelForSeq2SeqLM)
    if model.config.decoder_start_token_id is None:
        raise SystemExit("config.json has no decoder_start_token_id, expected the token before the first of a summary")
    data = shared.open_data(options)
    summaries = data["validation"][options.summary_column]

    def encode(rows: Mapping[str, Any]) -> dict[str, Any]:
        texts = [options.source_prefix + text for text in rows[options.text_column]]
        encoded = tokenizer(texts, truncation=True, max_length=options.max_source_length)
        targets = tokenizer(
            text_target=rows[options.summary_column], truncation=True, max_length=options.max_target_length
        )
        return {"input_ids": encoded["input_ids"], "labels": targets["input_ids"]}

    data = data.map(encode, batched=True, remove_columns=data["train"].column_names)
    arrays = partial(collate, tokenizer, model.config, (options.max_source_length, options.max_target_length))
    chosen = partial(loss, smoothing=options.label_smoothing_factor)
    params, losses = shared.fit(options, model, data["train"], arrays, chosen)
    eval_loss = shared.evaluate(options, model, params, data["validation"], arrays, chosen)

    def write(params: Any, batch: shared.Batch) -> Any:
        limits = {"max_length": options.max_target_length + 1, "num_beams": options.num_beams}
        source = {"attention_mask": batch["attention_mask"], "params": params}
        return model.generate(batch["input_ids"], **source, **limits).sequences

    written = shared.predict(options, write, params, data["validation"], arrays)
    guesses = tokenizer.batch_decode(written, skip_special_tokens=True)
    results = {"losses": losses, "eval_loss": eval_loss, **metrics.rouge(guesses, summaries)}
    shared.save(options, model, params, tokenizer, results)
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
