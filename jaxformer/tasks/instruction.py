"""Supervised fine-tuning on instructions and dialogues: only the answers are learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from jaxformer.data.example_rows import Example
from jaxformer.data.piece_rows import pack
from jaxformer.tasks.base import Rows
from jaxformer.tasks.packing import best_fit, packed_pairs
from jaxformer.tasks.records import Record, Tally, read_rows
from jaxformer.tasks.responses import Encoded, ResponseConfig, ResponseTask, causal_row
from jaxformer.tasks.row_readers import RowFormat, RowReader


class InstructionConfig(ResponseConfig):
    """Supervised fine-tuning on instructions and dialogues."""

    architectures = ("decoder", "encoder_decoder")
    predicts_tokens = True

    type: Literal["instruction"] = Field("instruction", description="objective")
    format: RowFormat = Field(
        "auto",
        description="columns of a row: alpaca (instruction, input, output), completion (prompt, completion), messages; "
        "auto: detected for each row",
    )
    chat_template: str | None = Field(
        None,
        description="template of dialogues: Jinja, or human_assistant (the format of HH-RLHF), which then also applies "
        "to alpaca rows; default: the tokenizer's, for messages only",
    )
    packed: bool = Field(True, description="pack several examples into a row, without attention across them")
    target_length: int | None = Field(
        None, ge=2, description="encoder_decoder: longest answer, end token included; default: sequence_length"
    )
    chunk_tokens: int = Field(2048, ge=1, description="tokens per device whose logits are in memory at once")

    def longest_target(self, sequence_length: int) -> int:
        """Longest response of an encoder-decoder."""
        return self.target_length or sequence_length

    @property
    def reader(self) -> RowReader:
        """Reads prompt and response of a row."""
        return RowReader(self.format, self.columns, as_messages=self.chat_template is not None)

    def parts(self, record: Record) -> Sequence[Any]:
        """Prompt and response, and what the chat template reads beside them."""
        return self.reader.read(record)


@dataclass(frozen=True, eq=False)
class Instruction(ResponseTask):
    """``-log p(answer token | previous tokens)``, summed over the tokens of the answers and their ends.

    Ouyang et al. 2022, "InstructGPT", section 3.5; Taori et al. 2023, "Stanford Alpaca". Every answer of the assistant
    in a dialogue is learned.
    """

    config: InstructionConfig

    def encode(self, data: Sequence[Record], tally: Tally) -> list[Encoded]:
        """The tokens of the usable rows."""
        rows = read_rows(data, self.config.reader.read, tally)
        pairs = zip(self.encoder.encode(rows, tally), rows, strict=True)
        fitted = (self.fitted(encoded, record, tally) for encoded, (record, _) in pairs if encoded is not None)
        return [encoded for encoded in fitted if encoded is not None]

    def rows(self, data: Sequence[Record]) -> Rows:
        """One row per example, or several; unusable rows are skipped; a ``UserError`` if none is left."""
        tally = Tally(self.config.bad_rows, len(data))
        encoded = self.encode(data, tally)
        return self.table(self._two_sided(encoded) if self.two_sided else self._one_sided(encoded), tally)

    def _packed(self, sizes: Sequence[tuple[int, ...]], *limits: int) -> list[list[int]]:
        return best_fit(sizes, limits) if self.config.packed else [[number] for number in range(len(sizes))]

    def _one_sided(self, encoded: Sequence[Encoded]) -> list[Example]:
        rows: list[Any] = [causal_row(text) for text in encoded]
        if not self.config.packed:
            return rows
        packed: list[Example] = []
        for numbers in self._packed([(len(row["input_ids"]),) for row in rows], self.sequence_length):
            inputs = [rows[number]["input_ids"] for number in numbers]
            ids, segments = pack(inputs, sum(map(len, inputs)))
            labels = np.concatenate([rows[number]["labels"] for number in numbers])
            packed.append({"input_ids": ids, "labels": labels, "segment_ids": segments})
        return packed

    def _two_sided(self, encoded: Sequence[Encoded]) -> list[Example]:
        assert self.target_length is not None
        pairs = [(np.array(e.prompt, np.int32), np.array(e.response, np.int32)) for e in encoded]
        sizes = [(len(source), len(target)) for source, target in pairs]
        examples: list[Example] = []
        for row in self._packed(sizes, self.sequence_length, self.target_length):
            source, target = (sum(sizes[number][side] for number in row) for side in (0, 1))
            batch = packed_pairs([[pairs[number] for number in row]], source, target, self.start_id)
            examples.append({name: array[0] for name, array in batch.items()})
        return examples
