"""Supervised fine-tuning: answer as the examples do; only the answers are learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.example_rows import Example, ExampleRows
from jaxformer.data.piece_rows import pack
from jaxformer.families import build_model
from jaxformer.models.config import TransformerConfig
from jaxformer.tasks import records as R
from jaxformer.tasks.bad_rows import Tally
from jaxformer.tasks.base import Batch, LossSums, Rows, token_loss
from jaxformer.tasks.packing import packed_pairs
from jaxformer.tasks.response_task import ResponseConfig, ResponseTask
from jaxformer.tasks.responses import Encoded, RowFormat, RowReader, fitted
from jaxformer.tokenizers import special_id


class InstructionConfig(ResponseConfig):
    """Answer instructions and dialogues."""

    architectures = ("decoder", "encoder_decoder")

    type: Literal["instruction"] = Field("instruction", description="objective")
    format: RowFormat = Field(
        "auto",
        description="columns of a row: alpaca (instruction, input, output), completion (prompt, completion), messages; "
        "auto: told from the row",
    )
    chat_template: str | None = Field(
        None,
        description="messages: a Jinja text, or human_assistant for dialogues as HH-RLHF writes them; where it is set, "
        "rows of alpaca are dialogues too; default: the tokenizer's, for messages alone",
    )
    packed: bool = Field(True, description="several examples in a row, without attention across them")
    target_length: int | None = Field(
        None, ge=2, description="encoder_decoder: most tokens of an answer, its end included; default: sequence_length"
    )
    chunk_tokens: int = Field(2048, ge=1, description="tokens whose logits are in memory at once, on a device")

    @property
    def longest_target(self) -> int:
        """Most tokens of a target."""
        return self.target_length or 0

    @property
    def reader(self) -> RowReader:
        """Finds prompt and response in a row."""
        return RowReader(self.format, self.columns, as_messages=self.chat_template is not None)

    def parts(self, record: R.Record) -> tuple[Any, Any]:
        """Prompt and response; see ``ResponseConfig``."""
        return self.reader.read(record)


@dataclass(frozen=True, eq=False)
class Instruction(ResponseTask):
    """``-log p(answer token | what stands before it)``, summed over the tokens of the answers and their ends.

    Ouyang et al. 2022, "InstructGPT", section 3.5; Taori et al. 2023, "Stanford Alpaca". Of a dialogue every answer of
    the assistant is learned.
    """

    config: InstructionConfig

    @property
    def target_length(self) -> int:
        """Most tokens of an answer in an encoder-decoder."""
        return self.config.target_length or self.sequence_length

    def model(self, config: TransformerConfig) -> nn.Module:
        """The model with its language-model head."""
        return build_model(config)

    def encode(self, data: Sequence[R.Record], tally: Tally) -> list[Encoded]:
        """The rows that can be used, as tokens."""
        # What a decoder is asked for last it need not read.
        room = self.sequence_length if self.two_sided else self.sequence_length + 1
        target = self.target_length if self.two_sided else None
        found = self.encoder.encode(data, self.config.reader.read, tally)
        pairs = [(e, record) for e, record in zip(found, data, strict=True) if e is not None]
        kept = (fitted(encoded, room, target, record, tally) for encoded, record in pairs)
        return [encoded for encoded in kept if encoded is not None]

    def rows(self, data: Sequence[R.Record]) -> Rows:
        """One row an example, or several examples a row.

        What cannot be used is reported: a missing column, an empty answer, a prompt longer than the row. Answers that
        do not fit are cut at their end.

        Raises:
            UserError: if no row can be used.
        """
        tally = Tally(self.config.bad_rows, len(data))
        encoded = self.encode(data, tally)
        tally.report(f" to fit {self.target_length if self.two_sided else self.sequence_length} tokens")
        rows = self._two_sided_rows(encoded) if self.two_sided else self._decoder_rows(encoded)
        rows.left_out = tally.left_out
        return rows

    def _decoder_rows(self, encoded: Sequence[Encoded]) -> ExampleRows:
        examples: list[Example] = [_decoder_example(example) for example in encoded]
        if self.config.packed:
            sizes = [(np.size(example["input_ids"]),) for example in examples]
            packed = first_fit(sizes, (self.sequence_length,))
            examples = [_joined([examples[number] for number in row]) for row in packed]
        # The mask says what is padding, so that the tokenizer need not have a token for it.
        fill = {"input_ids": 0, "labels": F.IGNORE, "segment_ids": 0}
        return ExampleRows(examples, self.sequence_length, fill)

    def _two_sided_rows(self, encoded: Sequence[Encoded]) -> ExampleRows:
        pairs = [(np.array(e.prompt, np.int32), np.array(e.response, np.int32)) for e in encoded]
        limits = (self.sequence_length, self.target_length)
        sizes = [(len(source), len(target)) for source, target in pairs]
        rows = first_fit(sizes, limits) if self.config.packed else [[number] for number in range(len(pairs))]
        start = special_id(self.tokenizer, self.start)
        examples: list[Example] = []
        for row in rows:
            source, target = (sum(sizes[number][side] for number in row) for side in (0, 1))
            batch = packed_pairs([[pairs[number] for number in row]], source, target, start)
            examples.append({name: array[0] for name, array in batch.items()})
        fill = {
            "input_ids": 0,
            "segment_ids": 0,
            "decoder_input_ids": 0,
            "decoder_segment_ids": 0,
            "labels": F.IGNORE,
        }
        lengths = dict.fromkeys(("decoder_input_ids", "decoder_segment_ids", "labels"), self.target_length)
        return ExampleRows(examples, self.sequence_length, fill, lengths)

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """The rows as they are."""
        return batch

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Cross-entropy summed over the tokens of the answers, nats."""
        return token_loss(model, params, batch, dropout_key, chunk_tokens=self.config.chunk_tokens)


def _decoder_example(encoded: Encoded) -> Example:
    """Inputs and the labels one to the right of them; the last token is asked for and not read."""
    ids = np.array([*encoded.prompt, *encoded.response], np.int32)
    learned = np.array([False] * len(encoded.prompt) + encoded.learned)
    return {"input_ids": ids[:-1], "labels": np.where(learned[1:], ids[1:], F.IGNORE).astype(np.int32)}


def _joined(examples: Sequence[Example]) -> Example:
    """Examples one behind the other in a row."""
    inputs = [np.asarray(example["input_ids"]) for example in examples]
    ids, segments = pack(inputs, sum(map(len, inputs)))
    labels = np.concatenate([np.asarray(example["labels"]) for example in examples])
    return {"input_ids": ids, "labels": labels, "segment_ids": segments}


def first_fit(sizes: Sequence[tuple[int, ...]], limits: tuple[int, ...]) -> list[list[int]]:
    """Which examples stand together in a row: the largest first, each in the fullest row that has room for it.

    "Best fit decreasing", at most 11/9 of the fewest rows there could be and 4 more for one limit (Johnson 1973).

    >>> first_fit([(3,), (5,), (2,), (4,)], (7,))
    [[1, 2], [3, 0]]

    Args:
        sizes: what each example takes up of every limit.
        limits: what a row holds.
    """
    order = sorted(range(len(sizes)), key=lambda number: (-sizes[number][0], number))
    rows: list[list[int]] = []
    room: dict[int, list[tuple[int, tuple[int, ...]]]] = {}  # by what is left of the first limit: row, all that is left
    for number in order:
        size = sizes[number]
        place = None
        for left in range(size[0], limits[0] + 1):
            place = next(
                (
                    i
                    for i, (_, rest) in enumerate(room.get(left, ()))
                    if all(a <= b for a, b in zip(size, rest, strict=True))
                ),
                None,
            )
            if place is not None:
                row, rest = room[left].pop(place)
                break
        else:
            row, rest = len(rows), limits
            rows.append([])
        rows[row].append(number)
        rest = tuple(b - a for a, b in zip(size, rest, strict=True))
        room.setdefault(rest[0], []).append((row, rest))
    return rows
