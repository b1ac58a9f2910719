"""What a tokenizer returns: a dictionary of a model's inputs that remembers which token came from where in the text."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tokenizers as hf

from jaxformer.schema import UserError

Side = Literal["left", "right"]
# What fills the padded places of each key; input_ids are filled with the tokenizer's own id.
_FILL = {"attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
TENSORS = (None, "np", "jax")


class CharSpan(NamedTuple):
    """The characters ``[start, end)`` of a text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """The tokens ``[start, end)`` of a row."""

    start: int
    end: int


class BatchEncoding(dict[str, Any]):
    """A model's inputs by name, also as attributes: ``batch["input_ids"]``, ``batch.input_ids``, ``model(**batch)``.

    ``batch[0]`` is the first row's ``tokenizers.Encoding``. The methods below take the row first; with one argument
    they speak of row 0.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, encodings: Sequence[hf.Encoding] | None = None) -> None:
        super().__init__(values or {})
        self._encodings = None if encodings is None else list(encodings)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        return self._rows()[key]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self:
            return self[name]
        raise AttributeError(f"the batch has no {name}, only {', '.join(self)}")

    def __reduce__(self) -> Any:
        return BatchEncoding, (dict(self), self._encodings)

    def _rows(self) -> list[hf.Encoding]:
        if self._encodings is None:
            raise UserError(
                "this batch does not know its texts (it was padded or made by hand); ask the one the tokenizer returned"
            )
        return self._encodings

    def _row(self, row: int) -> hf.Encoding:
        rows = self._rows()
        if not -len(rows) <= row < len(rows):
            raise UserError(f"row {row} of a batch of {len(rows)} was asked for")
        return rows[row]

    @property
    def encodings(self) -> list[hf.Encoding] | None:
        """What the ``tokenizers`` library returned for each row, None if the batch was not made from text."""
        return self._encodings

    @property
    def is_fast(self) -> bool:
        """Whether the methods that follow tokens back to the text can be used."""
        return self._encodings is not None

    @property
    def n_sequences(self) -> int | None:
        """1 for texts, 2 for pairs, None if unknown."""
        return int(self._encodings[0].n_sequences) if self._encodings else None

    def tokens(self, row: int = 0) -> list[str]:
        """The row's tokens, special ones and padding included."""
        return list(self._row(row).tokens)

    def word_ids(self, row: int = 0) -> list[int | None]:
        """For each token the number of its word, None for special tokens."""
        return list(self._row(row).word_ids)

    def sequence_ids(self, row: int = 0) -> list[int | None]:
        """For each token 0 or 1, the text of the pair it is of, None for special tokens."""
        return list(self._row(row).sequence_ids)

    def token_to_sequence(self, row: int, token: int | None = None) -> int | None:
        """The text of the pair, 0 or 1, that the token is of."""
        row, token = _shift(row, token)
        return _maybe(self._row(row).token_to_sequence(self._place(row, token)))

    def token_to_word(self, row: int, token: int | None = None) -> int | None:
        """The number of the token's word, None for special tokens."""
        row, token = _shift(row, token)
        found = self._row(row).token_to_word(self._place(row, token))
        return None if found is None else int(found[1] if isinstance(found, tuple) else found)

    def token_to_chars(self, row: int, token: int | None = None) -> CharSpan | None:
        """The characters of the text that the token stands for, None for special tokens."""
        row, token = _shift(row, token)
        found = self._row(row).token_to_chars(self._place(row, token))
        if found is None:
            return None
        return CharSpan(*(found[1] if isinstance(found[1], tuple) else found))

    def char_to_token(self, row: int, char: int | None = None, sequence_index: int = 0) -> int | None:
        """The token that holds the character, None if none does (a blank, often)."""
        row, char = _shift(row, char)
        return _maybe(self._row(row).char_to_token(char, sequence_index))

    def char_to_word(self, row: int, char: int | None = None, sequence_index: int = 0) -> int | None:
        """The word that holds the character, None if none does."""
        row, char = _shift(row, char)
        return _maybe(self._row(row).char_to_word(char, sequence_index))

    def word_to_tokens(self, row: int, word: int | None = None, sequence_index: int = 0) -> TokenSpan | None:
        """The tokens of the word, None if truncation left none."""
        row, word = _shift(row, word)
        found = self._row(row).word_to_tokens(word, sequence_index)
        return None if found is None else TokenSpan(*found)

    def word_to_chars(self, row: int, word: int | None = None, sequence_index: int = 0) -> CharSpan | None:
        """The characters of the word, None if truncation left none."""
        row, word = _shift(row, word)
        found = self._row(row).word_to_chars(word, sequence_index)
        return None if found is None else CharSpan(*found)

    def _place(self, row: int, token: int) -> int:
        return token + len(self._row(row).ids) if token < 0 else token

    def convert_to_tensors(self, tensor_type: str | None = None) -> "BatchEncoding":
        """Turns every value into an array of that type, in place, and returns the batch.

        Raises:
            UserError: the type is not ``np`` or ``jax``, or the rows of a value differ in length.
        """
        check_tensors(tensor_type)
        if tensor_type is not None:
            for key, value in self.items():
                self[key] = to_array(key, value, tensor_type)
        return self


def _shift(row: int, index: int | None) -> tuple[int, int]:
    return (0, row) if index is None else (row, index)


def _maybe(value: Any) -> int | None:
    return None if value is None else int(value)


def check_tensors(kind: str | None) -> None:
    """Refuses a ``return_tensors`` that is not None, ``np`` or ``jax``.

    Raises:
        UserError: it is another.
    """
    if kind not in TENSORS:
        raise UserError(f"return_tensors is {kind!r}, expected None, 'np' or 'jax'")


def is_rectangle(value: Any) -> bool:
    """Whether the rows of a list have one length."""
    return not value or not isinstance(value[0], list) or len({len(row) for row in value}) == 1


def to_array(key: str, value: Any, kind: str) -> Any:
    """The rows as one int32 array, NumPy's or JAX's.

    Raises:
        UserError: the rows differ in length.
    """
    if isinstance(value, list):
        if not is_rectangle(value):
            lengths = sorted({len(row) for row in value})
            raise UserError(
                f"the rows of {key} have from {lengths[0]} to {lengths[-1]} entries and make no array; "
                "expected rows of one length: pass padding=True, and truncation=True with max_length"
            )
        value = np.asarray(value, np.int32)
    if kind == "jax":
        import jax.numpy as jnp

        return jnp.asarray(value)
    return np.asarray(value)


def check_side(side: str, name: str) -> Side:
    """The side, if it is one.

    Raises:
        UserError: it is not ``left`` or ``right``.
    """
    if side not in ("left", "right"):
        raise UserError(f"{name} is {side!r}, expected 'left' or 'right'")
    return "left" if side == "left" else "right"


def round_up(length: int, multiple: int | None) -> int:
    """The length, or the next multiple of ``multiple``.

    Raises:
        UserError: ``multiple`` is below 1.
    """
    if multiple is None:
        return length
    if multiple < 1:
        raise UserError(f"pad_to_multiple_of is {multiple}, expected 1 or more, or None")
    return -(-length // multiple) * multiple


def pad_rows(rows: dict[str, list[list[int]]], length: int | None, side: Side, pad_id: int) -> dict[str, Any]:
    """Each row filled up to ``length``, default the longest row; keys that are not per token stay as they are.

    Longer rows stay as they are: padding never cuts.
    """
    ids = rows["input_ids"]
    length = max(map(len, ids), default=0) if length is None else length
    fill = {**_FILL, "input_ids": pad_id}
    padded: dict[str, Any] = {}
    for key, values in rows.items():
        if key not in fill:
            padded[key] = values
            continue
        padded[key] = [
            row + [fill[key]] * (length - len(row)) if side == "right" else [fill[key]] * (length - len(row)) + row
            for row in values
        ]
    return padded


def to_arrays(values: dict[str, Any], tensors: str | None) -> dict[str, Any]:
    """Every value as an array; where no kind was asked for, only those that make a rectangle."""
    arrays = {}
    for key, value in values.items():
        if tensors is None and isinstance(value, list) and not is_rectangle(value):
            arrays[key] = value
        else:
            arrays[key] = to_array(key, value, tensors or "np")
    return arrays


def to_rows(inputs: Any) -> tuple[dict[str, Any], bool]:
    """Inputs by name as rows of lists, and whether they are many.

    Raises:
        UserError: they are no inputs by name, or rows of different number.
    """
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        if not inputs or not all(isinstance(row, Mapping) for row in inputs):
            raise UserError("pad got a list that does not hold inputs by name, expected what the tokenizer returned")
        names = inputs[0].keys()
        if any(row.keys() != names for row in inputs):
            raise UserError("pad got rows with different names, expected the same in each")
        inputs = {name: [row[name] for row in inputs] for name in names}
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        raise UserError("pad got no input_ids, expected what the tokenizer returned")
    rows = {name: _listed(value) for name, value in inputs.items()}
    ids = rows["input_ids"]
    if ids and not isinstance(ids[0], list):
        return {name: [value] for name, value in rows.items()}, False
    if any(len(value) != len(ids) for value in rows.values()):
        raise UserError("pad got values of different numbers of rows, expected one number")
    return rows, True


def _listed(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
