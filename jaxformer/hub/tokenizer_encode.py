"""Texts to encodings: what may be given, how it is cut and padded, without a trace of one call left for the next.

The ``tokenizers`` library keeps truncation and padding as a state of the tokenizer, which two threads, or two calls,
would share. Here the shared tokenizer has neither: padding is done on the finished rows, and a text that is too long is
finished by a small tokenizer made for the call, which has the same special tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import tokenizers as hf
from tokenizers import models

from jaxformer.hub.tokenizer_batch import Side, check_side, round_up
from jaxformer.schema import UserError, nearest

_PADDINGS = ("longest", "max_length", "do_not_pad")
_TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
_EXPECTED = "expected a text, a list of texts, or with is_split_into_words=True a list of words or of lists of words"


@dataclass(frozen=True)
class Plan:
    """How rows are cut and padded.

    Attributes:
        truncation: which text of a pair is cut, None to cut nothing.
        padding: to the longest row or to ``max_length``, None to pad nothing.
        max_length: tokens of a row, special ones included; None where nothing is cut or padded to it.
        stride: tokens that a row shares with the one before it, where a text is cut into several.
        multiple: padded lengths are multiples of it.
        truncation_side: where tokens are cut off.
        padding_side: where padding goes.
    """

    truncation: Literal["longest_first", "only_first", "only_second"] | None
    padding: Literal["longest", "max_length"] | None
    max_length: int | None
    stride: int
    multiple: int | None
    truncation_side: Side
    padding_side: Side


@dataclass(frozen=True)
class Inputs:
    """The texts of a call.

    Attributes:
        first: each row's text, or its words.
        second: each row's second text, None where there is none.
        batched: whether several were given, or a list of one.
        split: whether they are lists of words.
    """

    first: list[Any]
    second: list[Any] | None
    batched: bool
    split: bool


def _choice(name: str, value: bool | str | None, choices: tuple[str, ...]) -> str | None:
    """The strategy's name, None for none; True is the first of the choices."""
    if value is None or value is False or value == choices[-1]:
        return None
    if value is True:
        return choices[0]
    if value not in choices:
        raise UserError(
            f"{name} is {value!r}, expected True, False or one of {', '.join(choices)}{nearest(str(value), choices)}"
        )
    return str(value)


def make_plan(
    padding: bool | str,
    truncation: bool | str | None,
    max_length: int | None,
    stride: int,
    multiple: int | None,
    sides: tuple[str, str],
    limit: int | None,
) -> Plan:
    """What the arguments of a call come to.

    Args:
        padding: True is ``"longest"``.
        truncation: True is ``"longest_first"``; None is True if there is a ``max_length`` and no padding.
        max_length: default ``limit`` where it is needed.
        stride: tokens shared by neighbouring rows of one text.
        multiple: of which padded lengths are multiples.
        sides: where to cut and where to pad.
        limit: the model's own longest row, None if unknown: then ``truncation=True`` alone cuts nothing.

    Raises:
        UserError: an argument is wrong, or does not go with another.
    """
    if truncation is None and max_length is not None and padding is False:
        truncation = True
    pad, cut = _choice("padding", padding, _PADDINGS), _choice("truncation", truncation, _TRUNCATIONS)
    if max_length is not None and (not isinstance(max_length, int | np.integer) or max_length < 0):
        raise UserError(f"max_length is {max_length!r}, expected a whole number of tokens, or None")
    length = max_length if max_length is not None else limit
    if pad == "max_length" and length is None:
        raise UserError(
            "padding is 'max_length' but neither the call nor the tokenizer says how long that is; give max_length="
        )
    if length is None:
        cut = None
    if stride < 0:
        raise UserError(f"stride is {stride}, expected 0 or more")
    round_up(0, multiple)
    if cut and pad and multiple and length is not None and length % multiple:
        raise UserError(
            f"rows are cut to max_length={length} and padded to multiples of {multiple}, which it is not; "
            f"expected max_length={round_up(length, multiple)} or another pad_to_multiple_of"
        )
    return Plan(
        truncation=cut,  # type: ignore[arg-type]  # one of the choices
        padding=pad,  # type: ignore[arg-type]
        max_length=None if length is None else int(length),
        stride=stride,
        multiple=multiple,
        truncation_side=check_side(sides[0], "truncation_side"),
        padding_side=check_side(sides[1], "padding_side"),
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _is_pair(value: Any, split: bool) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    return all(_is_list(item) for item in value) if split else all(isinstance(item, str) for item in value)


def _require_row(value: Any, split: bool, number: int) -> Any:
    if not split and isinstance(value, str):
        return str(value)
    if split and _is_list(value) and all(isinstance(word, str) for word in value):
        return [str(word) for word in value]
    what = f"a {type(value).__name__}" if not _is_list(value) else "a list"
    raise UserError(f"text {number} is {what}, {_EXPECTED}")


def read_inputs(text: Any, pair: Any, split: bool) -> Inputs:
    """Sorts out what a call was given: one text or many, alone, with second texts beside them, or as pairs.

    A second text that is empty is a second text, for one row as for many: only None is none.

    Raises:
        UserError: it is something else, or the second texts are not as many as the first.
    """
    batched = _is_list(text) and (not split or (len(text) > 0 and _is_list(text[0])))
    if not batched:
        first = [_require_row(text, split, 0)]
        return Inputs(first, None if pair is None else [_require_row(pair, split, 0)], False, split)
    rows = list(text)
    if pair is None and rows and all(_is_pair(row, split) for row in rows):
        rows, pair = [row[0] for row in rows], [row[1] for row in rows]
    first = [_require_row(row, split, number) for number, row in enumerate(rows)]
    if pair is None:
        return Inputs(first, None, True, split)
    if not _is_list(pair) or len(pair) != len(first):
        got = len(pair) if _is_list(pair) else f"one {type(pair).__name__}"
        raise UserError(f"text_pair has {got} for {len(first)} texts, expected as many second texts as first ones")
    return Inputs(first, [_require_row(row, split, number) for number, row in enumerate(pair)], True, split)


def guarded(call: Callable[[], Any], doing: str) -> Any:
    """The call's result; what the library complains of as an error of the user."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, UserError, MemoryError):
        raise
    except (UnicodeEncodeError, TypeError) as error:  # they are texts, so it can only be one that is not Unicode
        raise UserError(f"{doing} failed: a text holds half of a surrogate pair, expected Unicode") from error
    except BaseException as error:  # the library raises plain Exception, and on a panic of its own a BaseException
        raise UserError(f"{doing} failed: {str(error).splitlines()[0][:300]}") from error


def encode(
    backend: hf.Tokenizer,
    bare: Callable[[], hf.Tokenizer],
    inputs: Inputs,
    plan: Plan,
    add_special_tokens: bool,
    processor: Any = None,
) -> tuple[list[list[hf.Encoding]], int | None]:
    """The rows of each text: one, and behind it those that truncation cut off. Not padded.

    Args:
        backend: encodes on all cores, and neither cuts nor pads.
        bare: makes the same tokenizer without special tokens; called only if a text has to be cut.
        inputs: the texts.
        plan: how they are cut.
        add_special_tokens: whether special tokens are put around them.
        processor: what puts them there, default the backend's own.

    Returns:
        The rows, and the type of the second texts where rows were cut: the library gives it to the first of a text's
        rows alone.

    Raises:
        UserError: the texts cannot be cut as asked.
    """
    if not inputs.first:
        return [], None
    rows: list[Any] = inputs.first if inputs.second is None else list(zip(inputs.first, inputs.second, strict=True))
    if processor is None:
        whole = guarded(
            lambda: backend.encode_batch(rows, is_pretokenized=inputs.split, add_special_tokens=add_special_tokens),
            "encoding",
        )
        if plan.truncation is None:
            return [[encoding] for encoding in whole], None
        finisher = _finisher(backend.post_processor, plan, inputs.second is not None, add_special_tokens)
        found = [[encoding] for encoding in whole]
        redo = [i for i, encoding in enumerate(whole) if len(encoding) > (plan.max_length or 0)]
    else:
        finisher = _finisher(processor, plan, inputs.second is not None, add_special_tokens)
        found, redo = [[] for _ in rows], list(range(len(rows)))
    if redo:
        _finish(bare(), finisher, inputs, redo, found, add_special_tokens)
    second = next((_second_type(whole[i]) for i in redo), None) if processor is None and inputs.second else None
    return found, second


def _second_type(row: hf.Encoding) -> int | None:
    """The type of the second text's tokens, None if it has none."""
    return next((kind for kind, text in zip(row.type_ids, row.sequence_ids, strict=True) if text == 1), None)


def _finisher(processor: Any, plan: Plan, pairs: bool, add_special_tokens: bool) -> hf.Tokenizer:
    """A tokenizer without a vocabulary that cuts and puts special tokens around: so small that each call has one."""
    finisher = hf.Tokenizer(models.BPE())
    if processor is not None:
        finisher.post_processor = processor
    if plan.truncation is None:
        return finisher
    assert plan.max_length is not None
    special = finisher.num_special_tokens_to_add(pairs) if add_special_tokens else 0
    if plan.max_length < special:
        raise UserError(
            f"max_length is {plan.max_length}, but the special tokens alone are {special}; expected more than that"
        )
    if plan.stride and plan.stride >= plan.max_length - special:
        raise UserError(
            f"stride is {plan.stride}, but a row of max_length={plan.max_length} has {plan.max_length - special} "
            "tokens beside its special ones; expected a stride below that"
        )
    finisher.enable_truncation(
        plan.max_length, stride=plan.stride, strategy=plan.truncation, direction=plan.truncation_side
    )
    return finisher


def _finish(
    bare: hf.Tokenizer,
    finisher: hf.Tokenizer,
    inputs: Inputs,
    redo: list[int],
    found: list[list[hf.Encoding]],
    add_special_tokens: bool,
) -> None:
    """Fills in the rows of the texts numbered ``redo``."""

    def bare_rows(texts: list[Any]) -> Any:
        chosen = [texts[i] for i in redo]
        return bare.encode_batch(chosen, is_pretokenized=inputs.split, add_special_tokens=False)

    first = guarded(lambda: bare_rows(inputs.first), "encoding")
    second = None if inputs.second is None else guarded(lambda: bare_rows(inputs.second or []), "encoding")
    for place, i in enumerate(redo):
        other = None if second is None else second[place]
        doing = f"cutting text {i} down to max_length"
        row = guarded(partial(finisher.post_process, first[place], other, add_special_tokens), doing)
        found[i] = [row, *row.overflowing]


def pad_encodings(rows: list[hf.Encoding], plan: Plan, pad_id: int, pad_token: str) -> None:
    """Pads the rows, in place: they are the call's own."""
    if plan.padding is None or not rows:
        return
    length = plan.max_length if plan.padding == "max_length" else max(len(row) for row in rows)
    assert length is not None
    length = round_up(length, plan.multiple)
    for row in rows:
        row.pad(length, direction=plan.padding_side, pad_id=pad_id, pad_type_id=0, pad_token=pad_token)


def type_ids(row: hf.Encoding, second: int | None) -> list[int]:
    """The row's types, those of the second text set to ``second`` where that is known."""
    if second is None:
        return list(row.type_ids)
    return [second if text == 1 else kind for kind, text in zip(row.type_ids, row.sequence_ids, strict=True)]
