"""Sequence to sequence: generate a text from a text, for instance a translation or a summary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.example_rows import Example, ExampleRows
from jaxformer.generation.decode import search
from jaxformer.generation.options import Rules
from jaxformer.tasks import metrics
from jaxformer.tasks import records as R
from jaxformer.tasks.base import Batch, LossSums, Report, Rows, Task, TaskSchema, token_loss
from jaxformer.tasks.responses import two_sided_row
from jaxformer.tokenizers import decode, encode_batch, special_id


class Seq2SeqConfig(TaskSchema):
    """Generate a target text from a source text."""

    architectures = ("encoder_decoder",)
    reads = "records"
    report_at_end = True
    special_tokens = ("pad", "sep")

    type: Literal["seq2seq"] = Field("seq2seq", description="objective")
    source_column: str = Field("source", description="column with the source text")
    target_column: str = Field("target", description="column with the target text")
    prefix: str = Field("", description="prefix of every source, for instance 'translate English to German: '")
    target_length: int = Field(128, ge=2, description="longest target, end token included")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability mass spread evenly over the vocabulary")
    chunk_tokens: int = Field(2048, ge=1, description="tokens per device whose logits are in memory at once")
    metrics: list[Literal["bleu", "chrf", "rouge"]] = Field(["bleu"], description="metrics of the generated texts")
    bleu_tokenize: Literal["13a", "intl", "char"] = Field(
        "13a", description="tokenizer of BLEU: 13a (the default of sacrebleu), intl (Unicode) or char (characters)"
    )

    def texts(self, record: R.Record) -> list[str]:
        """The source with its prefix, and the target."""
        source = self.prefix + R.text(record, self.source_column, "source_column")
        return [source, R.text(record, self.target_column, "target_column")]


@dataclass(frozen=True, eq=False)
class Seq2Seq(Task):
    """``-log p(target token | source, target tokens before it)``, summed over the target tokens and their end.

    Sources and targets end with the ``sep`` token (Raffel et al. 2020, section 2.1 and its published models).
    """

    config: Seq2SeqConfig

    def __post_init__(self) -> None:
        R.check_length(self, 2)

    def rows(self, data: Sequence[R.Record]) -> Rows:
        """One row a record."""
        pad, end = special_id(self.tokenizer, "pad"), special_id(self.tokenizer, "sep")
        texts = [self.config.texts(record) for record in data]
        sources = encode_batch(self.tokenizer, [source for source, _ in texts])
        targets = encode_batch(self.tokenizer, [target for _, target in texts])
        examples: list[Example] = []
        for source, target in zip(sources, targets, strict=True):
            labels = [*target[: self.config.target_length - 1], end]
            examples.append(two_sided_row([*source[: self.sequence_length - 1], end], labels, self.start_id))
        fill = {"input_ids": pad, "decoder_input_ids": pad, "labels": F.IGNORE}
        lengths = dict.fromkeys(("decoder_input_ids", "labels"), self.config.target_length)
        return ExampleRows(examples, self.sequence_length, fill, lengths)

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Cross-entropy summed over the target tokens, nats."""
        options = self.config.model_dump(include={"chunk_tokens", "label_smoothing"})
        return token_loss(model, params, batch, dropout_key, **options)

    def predict(self, model: nn.Module, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """``tokens [B, target_length]`` by greedy search, padded."""
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
            start_ids=jnp.full(rows, self.start_id, jnp.int32),
        )
        return {"tokens": found.tokens}

    def report(self, data: Sequence[R.Record], outputs: dict[str, np.ndarray]) -> Report:
        """The configured metrics, and for each record source, target and prediction."""
        predicted = [self._text(row) for row in outputs["tokens"]]
        sources, targets = zip(*map(self.config.texts, data), strict=True)
        found: dict[str, float] = {}
        notes: dict[str, str] = {}
        for name in self.config.metrics:
            if name == "bleu":
                found[name], notes[name] = metrics.bleu(predicted, targets, self.config.bleu_tokenize)
            elif name == "chrf":
                found[name], notes[name] = metrics.chrf(predicted, targets)
            else:
                found |= metrics.rouge(predicted, targets)
        names = ("source", "target", "predicted")
        rows = zip(sources, targets, predicted, strict=True)
        return Report(found, [dict(zip(names, row, strict=True)) for row in rows], notes=notes)

    def _text(self, tokens: np.ndarray) -> str:
        """The text before the first end token."""
        ends = np.flatnonzero(tokens == special_id(self.tokenizer, "sep"))
        return decode(self.tokenizer, tokens[: ends[0]] if len(ends) else tokens)
