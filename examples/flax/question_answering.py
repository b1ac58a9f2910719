"""Questions whose answers are spans of a context, as SQuAD (Rajpurkar et al. 2016, 2018).

    python examples/flax/question_answering.py --model_name_or_path bert --train_file rows.json --output_dir reader

The file is ``{"data": [{"question": ..., "context": ..., "answers": {"text": [...], "answer_start": [...]}}, ...]}``,
or .jsonl with such a row in each line. Empty lists mean that the context has no answer.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import shared

from jaxformer.flax_names import FlaxAutoModelForQuestionAnswering
from jaxformer.tasks import metrics


def encode(tokenizer: Any, options: Any, rows: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Windows of the contexts, each behind its question, and where in them the answer is: at the first token if not."""
    encoded = tokenizer(
        [question.lstrip() for question in rows["question"]],
        rows["context"],
        truncation="only_second",
        max_length=options.max_seq_length,
        stride=options.doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length",
    )
    found: dict[str, list[Any]] = {name: encoded[name] for name in tokenizer.model_input_names}
    found |= {"example": [rows["number"][n] for n in encoded["overflow_to_sample_mapping"]], "offsets": []}
    found |= {"start_positions": [], "end_positions": []}
    for window, example in enumerate(encoded["overflow_to_sample_mapping"]):
        # Only tokens of the context have places in it, and can begin or end an answer.
        sides = encoded.sequence_ids(window)
        offsets = [
            place if side == 1 else (-1, -1)
            for place, side in zip(encoded["offset_mapping"][window], sides, strict=True)
        ]
        answers, start, end = rows["answers"][example], 0, 0
        if answers["text"]:
            begin = answers["answer_start"][0]
            stop = begin + len(answers["text"][0])
            inside = [i for i, (left, right) in enumerate(offsets) if left < stop and right > begin]
            if inside and offsets[inside[0]][0] <= begin and offsets[inside[-1]][1] >= stop:
                start, end = inside[0], inside[-1]
        found["offsets"].append(offsets)
        found["start_positions"].append(start)
        found["end_positions"].append(end)
    return found


def collate(names: Sequence[str], rows: Mapping[str, Any]) -> shared.Batch:
    """The arrays of some windows."""
    return {name: np.array(rows[name], np.int32) for name in (*names, "start_positions", "end_positions")}


def loss(call: Any, batch: shared.Batch) -> tuple[Any, Any]:
    """The mean of the losses of start and end."""
    start, end = batch.pop("start_positions"), batch.pop("end_positions")
    output = call(**batch)
    (first, count), (last, _) = shared.cross_entropy(output[0], start), shared.cross_entropy(output[1], end)
    return (first + last) / 2, count


def answers(windows: Any, scores: Any, contexts: Sequence[str], options: Any) -> list[str]:
    """The answer to each question: of all windows the span with the highest sum of scores, or none."""
    best = [(-np.inf, "")] * len(contexts)
    lengths = np.arange(options.max_seq_length)[None] - np.arange(options.max_seq_length)[:, None]
    for row, start, end in zip(windows, *scores, strict=True):
        inside = np.array(row["offsets"])[:, 0] >= 0
        allowed = inside[:, None] & inside & (lengths >= 0) & (lengths < options.max_answer_length)
        allowed[0, 0] = options.version_2_with_negative
        total = np.where(allowed, start[:, None] + end, -np.inf)
        first, last = np.unravel_index(total.argmax(), total.shape)
        left, right = row["offsets"][first][0], row["offsets"][last][1]
        text = contexts[row["example"]][left:right] if left >= 0 else ""
        best[row["example"]] = max(best[row["example"]], (float(total[first, last]), text))
    return [text for _, text in best]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; the results."""
    parser = shared.arguments("Trains a reader that answers questions with spans.")
    parser.add_argument("--max_seq_length", type=int, default=384, help="places of a window")
    parser.add_argument("--doc_stride", type=int, default=128, help="tokens that neighbouring windows share")
    parser.add_argument("--max_answer_length", type=int, default=30, help="tokens of an answer")
    parser.add_argument("--version_2_with_negative", action="store_true", help="some questions have no answer")
    options = parser.parse_args(arguments)
    data = shared.open_data(options, **({"field": "data"} if options.train_file.endswith(".json") else {}))
    tokenizer = shared.open_tokenizer(options)
    model = shared.open_model(options, FlaxAutoModelForQuestionAnswering)
    windows = data.map(lambda row, number: {"number": number}, with_indices=True).map(
        partial(encode, tokenizer, options), batched=True, remove_columns=[*data["train"].column_names, "number"]
    )
    arrays = partial(collate, tokenizer.model_input_names)
    params, losses = shared.fit(options, model, windows["train"], arrays, loss)
    call, held = (lambda params, batch: tuple(model(**batch, params=params)[:2])), windows["validation"]
    scores = shared.predict(options, call, params, held, arrays)
    found = answers(held, scores, data["validation"]["context"], options)
    truths = [row["text"] for row in data["validation"]["answers"]]
    scores = [(*metrics.answer_scores(guess, true), bool(true)) for guess, true in zip(found, truths, strict=True)]
    results = {"losses": losses, **metrics.answers(scores)}
    shared.save(options, model, params, tokenizer, results)
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
