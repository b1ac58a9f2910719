"""Text classification, as the tasks of GLUE (Wang et al. 2019), on rows with one or two texts and a label.

    python examples/flax/text_classification.py --model_name_or_path bert --train_file rows.csv --output_dir classifier

The texts are in the columns ``sentence1`` and ``sentence2``, ``sentence`` or ``text``, or in the first ones besides
``label``. Labels are names, or numbers with a point, which are predicted as such.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import shared

from jaxformer.flax_names import FlaxAutoModelForSequenceClassification


def text_columns(columns: Sequence[str]) -> list[str]:
    """The one or two columns with text."""
    for known in (["sentence1", "sentence2"], ["premise", "hypothesis"], ["sentence"], ["text"]):
        if set(known) <= set(columns):
            return known
    return [column for column in columns if column not in ("label", "idx", "id")][:2]


def collate(tokenizer: Any, length: int, rows: Mapping[str, Any]) -> shared.Batch:
    """The arrays of some rows."""
    kept = {name: rows[name] for name in tokenizer.model_input_names}
    batch = tokenizer.pad(kept, padding="max_length", max_length=length, return_tensors="np")
    return {**{name: np.asarray(array, np.int32) for name, array in batch.items()}, "labels": np.array(rows["labels"])}


def loss(call: Any, batch: shared.Batch, *, is_regression: bool) -> tuple[Any, Any]:
    """The cross-entropy of the classes, or the squared error of a number."""
    labels = batch.pop("labels")
    logits = call(**batch)[0]
    if not is_regression:
        return shared.cross_entropy(logits, labels)
    counted = labels != shared.IGNORED
    return jnp.sum(jnp.square(logits[..., 0] - labels) * counted), jnp.sum(counted)


def score(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy of classes; Pearson's correlation of numbers."""
    if np.issubdtype(labels.dtype, np.floating):
        return {"pearson": float(np.corrcoef(predicted[:, 0], labels)[0, 1])}
    return {"accuracy": float(np.mean(predicted.argmax(axis=-1) == labels))}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; the results."""
    parser = shared.arguments("Trains a classifier of texts.")
    parser.add_argument("--max_seq_length", type=int, default=128, help="places of a row")
    options = parser.parse_args(arguments)
    data = shared.open_data(options)
    is_regression = data["train"].features["label"].dtype.startswith("float")
    names = [] if is_regression else sorted(map(str, data["train"].unique("label")))
    tokenizer = shared.open_tokenizer(options)
    model = shared.open_model(options, FlaxAutoModelForSequenceClassification, num_labels=len(names) or 1)
    if not is_regression:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
    columns = text_columns(data["train"].column_names)

    def encode(rows: Mapping[str, Any]) -> dict[str, Any]:
        encoded = tokenizer(*(rows[name] for name in columns), truncation=True, max_length=options.max_seq_length)
        labels = rows["label"] if is_regression else [names.index(str(label)) for label in rows["label"]]
        return {**encoded, "labels": labels}

    data = data.map(encode, batched=True, remove_columns=data["train"].column_names)
    arrays = partial(collate, tokenizer, options.max_seq_length)
    chosen = partial(loss, is_regression=is_regression)
    params, losses = shared.fit(options, model, data["train"], arrays, chosen)
    validation = data["validation"]
    logits = shared.predict(
        options, lambda params, batch: model(**batch, params=params).logits, params, validation, arrays
    )
    results = {"losses": losses, **score(logits, np.array(validation["labels"]))}
    shared.save(options, model, params, tokenizer, results)
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
