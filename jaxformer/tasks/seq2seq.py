"""Sequence to sequence: a text from a text, for instance its translation or its summary."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.example_rows import Example, ExampleRows
from jaxformer.families import build_model
from jaxformer.generation.decode import search
from jaxformer.generation.options import Rules
from jaxformer.models.config import TransformerConfig
from jaxformer.tasks import metrics
from jaxformer.tasks import records as R
from jaxformer.tasks.base import Batch, LossSums, Report, Rows, Task, TaskSchema, chunked_cross_entropy
from jaxformer.tokenizers import PreTrainedTokenizer, Role, decode, encode_batch, special_id


class Seq2SeqConfig(TaskSchema):
    """Write a text for a text."""

    architectures = ("encoder_decoder",)
    reads = "records"
    report_at_end = True
    special_tokens = ("pad", "sep")

    type: Literal["seq2seq"] = Field("seq2seq", description="objective")
    source_column: str = Field("source", description="column with the text that is read")
    target_column: str = Field("target", description="column with the text that is written")
    prefix: str = Field("", description="put before every source, for instance 'translate English to German: '")
    target_length: int = Field(128, ge=2, description="most tokens of a target, its end included")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over the vocabulary")
    chunk_tokens: int = Field(2048, ge=1, description="tokens whose logits are in memory at once, on a device")
    metrics: list[Literal["bleu", "chrf", "rouge"]] = Field(["bleu"], description="metrics of the generated texts")
    bleu_tokenize: Literal["13a", "intl", "char"] = Field(
        "13a", description="words of BLEU: 13a, the usual; intl, by Unicode; char, each character"
    )

    @property
    def longest_target(self) -> int:
        """Most tokens of a target."""
        return self.target_length

    def texts(self, record: R.Record) -> list[str]:
        """The source with its prefix, and the target; what a tokenizer is trained on."""
        source = self.prefix + R.text(record, self.source_column, "source_column")
        return [source, R.text(record, self.target_column, "target_column")]


@dataclass(frozen=True, eq=False)
class Seq2Seq(Task):
    """``-log p(target token | source, target tokens before it)``, summed over the target tokens and their end.

    Sources and targets end in the ``sep`` token (Raffel et al. 2020, section 2.1 and its published models).

    Args:
        config: Columns, lengths and metrics.
        tokenizer: Has ``pad`` and ``sep``.
        sequence_length: Most tokens of a source, its end included.
        train_records: Nothing is found out from them.
        start: Special token the decoder starts with: T5 the padding, BART the end.
    """

    config: Seq2SeqConfig
    tokenizer: PreTrainedTokenizer
    sequence_length: int
    train_records: Sequence[R.Record] = field(repr=False)
    start: Role = "pad"

    def __post_init__(self) -> None:
        R.check_length(self.sequence_length, 2, self.config.type)

    def model(self, config: TransformerConfig) -> nn.Module:
        """The encoder-decoder with its language-model head."""
        return build_model(config)

    def rows(self, data: Sequence[R.Record]) -> Rows:
        """One row a record."""
        pad, end = special_id(self.tokenizer, "pad"), special_id(self.tokenizer, "sep")
        start = special_id(self.tokenizer, self.start)
        texts = [self.config.texts(record) for record in data]
        sources = encode_batch(self.tokenizer, [source for source, _ in texts])
        targets = encode_batch(self.tokenizer, [target for _, target in texts])
        examples: list[Example] = []
        for source, target in zip(sources, targets, strict=True):
            labels = [*target[: self.config.target_length - 1], end]
            examples.append(
                {
                    "input_ids": np.array([*source[: self.sequence_length - 1], end], np.int32),
                    "decoder_input_ids": np.array([start, *labels[:-1]], np.int32),
                    "labels": np.array(labels, np.int32),
                }
            )
        fill = {"input_ids": pad, "decoder_input_ids": pad, "labels": F.IGNORE}
        lengths = dict.fromkeys(("decoder_input_ids", "labels"), self.config.target_length)
        return ExampleRows(examples, self.sequence_length, fill, lengths)

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """The rows as they are."""
        return batch

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Cross-entropy summed over the target tokens, nats."""
        hidden, head = R.apply(model, params, batch, dropout_key, method="hidden_and_head")
        c = self.config
        sums = chunked_cross_entropy(
            hidden, head, batch["labels"], label_smoothing=c.label_smoothing, chunk_tokens=c.chunk_tokens
        )
        further = {"objective": sums.total} if c.label_smoothing else {}
        return LossSums(sums.total, sums.tokens, {"loss": sums.cross_entropy, **further})

    def predict(self, model: nn.Module, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """``tokens [B, target_length]``: the most probable token one by one (greedy search), then padding."""
        rows, end = len(batch["input_ids"]), special_id(self.tokenizer, "sep")
        found = search(
            model,
            params,
            batch["input_ids"],
            batch["attention_mask"].astype(bool),
            rules=Rules(end_ids=(end,), pad_id=end),
            numbers={},
            max_new_tokens=self.config.target_length,
            seeds=jnp.zeros((rows, 2), jnp.int32),
            start_ids=jnp.full(rows, special_id(self.tokenizer, self.start), jnp.int32),
        )
        return {"tokens": found.tokens}

    def report(self, data: Sequence[R.Record], outputs: dict[str, np.ndarray]) -> Report:
        """The metrics chosen over all texts and, a record each, source, target and what was written."""
        predicted = [self._text(row) for row in outputs["tokens"]]
        pairs = [self.config.texts(record) for record in data]
        targets = [target for _, target in pairs]
        found: dict[str, float] = {}
        notes: dict[str, str] = {}
        for name in self.config.metrics:
            if name == "bleu":
                found[name], notes[name] = metrics.bleu(predicted, targets, self.config.bleu_tokenize)
            elif name == "chrf":
                found[name], notes[name] = metrics.chrf(predicted, targets)
            else:
                found |= metrics.rouge(predicted, targets)
        predictions = [
            {"source": source, "target": target, "predicted": ours}
            for (source, target), ours in zip(pairs, predicted, strict=True)
        ]
        return Report(found, predictions, notes=notes)

    def _text(self, tokens: np.ndarray) -> str:
        """The text before the first end token."""
        ends = np.flatnonzero(tokens == special_id(self.tokenizer, "sep"))
        return decode(self.tokenizer, tokens[: ends[0]] if len(ends) else tokens)
