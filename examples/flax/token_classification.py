"""Token classification, as named entities (Tjong Kim Sang and De Meulder 2003), on rows of words and tags.

    python examples/flax/token_classification.py --model_name_or_path bert --train_file rows.json --output_dir tagger

A row is ``{"tokens": ["Ada", "lives"], "ner_tags": ["B-PER", "O"]}``. The measure is the F1 score of whole entities.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import shared

from jaxformer.flax_names import FlaxAutoModelForTokenClassification
from jaxformer.tasks import metrics


def aligned(words: Sequence[int | None], tags: Sequence[int], all_pieces: bool) -> list[int]:
    """The tag of each token by its word: of a word's first token alone, or of all of its tokens."""
    found = []
    for previous, word in zip([None, *words], words, strict=False):
        trains = word is not None and (all_pieces or word != previous)
        found.append(tags[word] if trains and word is not None else shared.IGNORED)
    return found


def collate(tokenizer: Any, length: int, rows: Mapping[str, Any]) -> shared.Batch:
    """The arrays of some rows."""
    kept = {name: rows[name] for name in tokenizer.model_input_names}
    batch = tokenizer.pad(kept, padding="max_length", max_length=length, return_tensors="np")
    labels = [[*tags, *[shared.IGNORED] * (length - len(tags))] for tags in rows["labels"]]
    return {**{name: np.asarray(array, np.int32) for name, array in batch.items()}, "labels": np.array(labels)}


def loss(call: Any, batch: shared.Batch) -> tuple[Any, Any]:
    """The loss of the tokens that have a tag."""
    labels = batch.pop("labels")
    return shared.cross_entropy(call(**batch)[0], labels)


def score(logits: np.ndarray, labels: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, float]:
    """Accuracy of tags; precision, recall and F1 of entities."""
    true, guessed = [], []
    for row, tags in zip(logits.argmax(axis=-1), labels, strict=True):
        places = [place for place, tag in enumerate(tags) if tag != shared.IGNORED]
        true.append([names[tags[place]] for place in places])
        guessed.append([names[row[place]] for place in places])
    return metrics.tagging(true, guessed, names)[0]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; the results."""
    parser = shared.arguments("Trains a tagger of words.")
    parser.add_argument("--text_column_name", default="tokens", help="column of words")
    parser.add_argument("--label_column_name", default="ner_tags", help="column of their tags")
    parser.add_argument("--label_all_tokens", action="store_true", help="all tokens of a word, not its first alone")
    parser.add_argument("--max_seq_length", type=int, default=128, help="places of a row")
    options = parser.parse_args(arguments)
    data = shared.open_data(options)
    words, tags = options.text_column_name, options.label_column_name
    names = sorted({tag for split in data.values() for row in split[tags] for tag in row})
    tokenizer = shared.open_tokenizer(options)
    model = shared.open_model(options, FlaxAutoModelForTokenClassification, num_labels=len(names))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}

    def encode(rows: Mapping[str, Any]) -> dict[str, Any]:
        encoded = tokenizer(rows[words], is_split_into_words=True, truncation=True, max_length=options.max_seq_length)
        numbers = [[names.index(tag) for tag in row] for row in rows[tags]]
        labels = [aligned(encoded.word_ids(i), row, options.label_all_tokens) for i, row in enumerate(numbers)]
        return {**encoded, "labels": labels}

    data = data.map(encode, batched=True, remove_columns=data["train"].column_names)
    arrays = partial(collate, tokenizer, options.max_seq_length)
    params, losses = shared.fit(options, model, data["train"], arrays, loss)
    validation = data["validation"]
    logits = shared.predict(
        options, lambda params, batch: model(**batch, params=params).logits, params, validation, arrays
    )
    results = {"losses": losses, **score(logits, validation["labels"], names)}
    shared.save(options, model, params, tokenizer, results)
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
