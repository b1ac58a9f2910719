"""What the tasks on records share: columns of a record, labels, inputs of an encoder, a call of the model."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxformer.schema import UserError
from jaxformer.tasks import base
from jaxformer.tasks.base import Batch
from jaxformer.tokenizers import PreTrainedTokenizer, special_id

Record = Mapping[str, Any]
# What of a batch a model takes; the rest is labels.
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids", "example_ids")


def where(record: Record) -> str:
    """File and line of a record, for errors."""
    return str(getattr(record, "where", "a record"))


def column(record: Record, name: str, key: str) -> Any:
    """The value in the column ``name``, which the configuration gives under ``task.KEY``.

    Raises:
        UserError: The record has no such column, or null in it.
    """
    if name not in record:
        found = ", ".join(map(str, record)) or "none"
        raise UserError(f"{where(record)} has no column {name!r}, only {found}: set task.{key} to one of them")
    if record[name] is None:
        raise UserError(f"{where(record)}: column {name!r} (task.{key}) holds null, expected a value")
    return record[name]


def text(record: Record, name: str, key: str) -> str:
    """The text in a column.

    Raises:
        UserError: There is none.
    """
    value = column(record, name, key)
    if not isinstance(value, str):
        raise UserError(f"{where(record)}: column {name!r} (task.{key}) holds {type(value).__name__}, expected text")
    return value


def items(record: Record, name: str, key: str) -> list[str]:
    """The list of texts in a column.

    Raises:
        UserError: It is no list, or holds something else than text.
    """
    value = column(record, name, key)
    if not isinstance(value, list | tuple | np.ndarray) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{where(record)}: column {name!r} (task.{key}) is {value!r:.60}, expected a list of texts")
    return list(value)


def find_labels(configured: Sequence[str] | None, found: Iterable[str]) -> tuple[str, ...]:
    """The names of the classes: as configured, else those of the training records, sorted (as numbers if all are).

    Raises:
        UserError: A configured name occurs twice.
    """
    if configured is not None:
        if len(set(configured)) < len(configured):
            raise UserError(f"task.labels is {list(configured)}, expected each label once")
        return tuple(configured)
    names = set(found)
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def label_number(numbers: Mapping[str, int], label: str, record: Record) -> int:
    """The number of a class.

    Raises:
        UserError: It is not among the labels; names the record and the labels.
    """
    if label not in numbers:
        known = ", ".join(numbers)
        raise UserError(f"{where(record)}: label {label!r} is none of {known}: add it to task.labels or mend the data")
    return numbers[label]


def check_length(sequence_length: int, smallest: int, task: str) -> None:
    """Refuses rows too short for the special tokens of a task and one token beside each.

    Raises:
        UserError: ``sequence_length`` is below ``smallest``.
    """
    if sequence_length < smallest:
        raise UserError(f"{task}: the sequence length is {sequence_length}, expected at least {smallest}; raise it")


def pair_lengths(first: int, second: int, budget: int) -> tuple[int, int]:
    """How many tokens of two texts fit into ``budget``: the longer one gives up its last token, until both fit.

    At a tie it is the second (``longest_first`` of Hugging Face).
    """
    if first + second <= budget:
        return first, second
    kept = min(first, max(budget - second, (budget + 1) // 2))
    return kept, budget - kept


def encoder_input(
    tokenizer: PreTrainedTokenizer, first: Sequence[int], second: Sequence[int] | None, length: int
) -> Batch:
    """``[CLS] first [SEP]`` or ``[CLS] first [SEP] second [SEP]``, at most ``length`` tokens, and ``token_type_ids``.

    Types are 0 up to the first ``[SEP]`` and 1 behind it (Devlin et al. 2019, "BERT", section 3).
    """
    cls, sep = special_id(tokenizer, "cls"), special_id(tokenizer, "sep")
    if second is None:
        ids = [cls, *first[: length - 2], sep]
        types = [0] * len(ids)
    else:
        a, b = pair_lengths(len(first), len(second), length - 3)
        ids = [cls, *first[:a], sep, *second[:b], sep]
        types = [0] * (a + 2) + [1] * (b + 1)
    return {"input_ids": np.array(ids, np.int32), "token_type_ids": np.array(types, np.int32)}


def encoder_fill(tokenizer: PreTrainedTokenizer) -> dict[str, int | float]:
    """What padding holds under the names of ``encoder_input``, and ``labels`` of -100."""
    return {"input_ids": special_id(tokenizer, "pad"), "token_type_ids": 0, "labels": -100}


def apply(model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None, method: str | None = None) -> Any:
    """The model's output for the inputs in a batch; ``dropout_key`` None is evaluation."""
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    return base.apply(model, params, inputs, dropout_key, method)


def pad_tokens(array: jax.Array, length: int, value: int) -> jax.Array:
    """``[B, T]`` to ``[B, length]``: batches are of different lengths, and the caller joins their outputs."""
    return jnp.pad(array, ((0, 0), (0, length - array.shape[1])), constant_values=value)


def rounded(values: np.ndarray) -> list[float]:
    """Numbers for a JSON file, with six digits behind the point."""
    return [round(float(value), 6) for value in values]
