"""Sequence to sequence: generate a text from a text, for instance a translation or a summary."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.example_rows import Example, ExampleRows
from jaxformer.generation.beam import beam_search
from jaxformer.generation.decode import Program, search
from jaxformer.generation.options import compile_options, parse_options, read_settings
from jaxformer.generation.prepare import prepare
from jaxformer.generation.prompts import Prompt
from jaxformer.models.config import TransformerConfig
from jaxformer.tasks import metrics
from jaxformer.tasks import records as R
from jaxformer.tasks.base import Batch, LossSums, Report, Rows, Task, TaskSchema, token_loss
from jaxformer.tasks.responses import two_sided_row
from jaxformer.tokenizers import Frame, decode, encode_batch, frame_of, special_id


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
    source_language: str | None = Field(
        None, description="code of the sources' language, for tokenizers that write one (mBART: en_XX)"
    )
    target_language: str | None = Field(None, description="code of the targets' language")
    target_length: int = Field(128, ge=2, description="longest target, end token included")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability mass spread evenly over the vocabulary")
    chunk_tokens: int = Field(2048, ge=1, description="tokens per device whose logits are in memory at once")
    metrics: list[Literal["bleu", "chrf", "rouge"]] = Field(["bleu"], description="metrics of the generated texts")
    bleu_tokenize: Literal["13a", "intl", "char"] = Field(
        "13a", description="tokenizer of BLEU: 13a (the default of sacrebleu), intl (Unicode) or char (characters)"
    )

    @property
    def languages(self) -> tuple[str | None, str | None]:
        """Codes of the languages of source and target."""
        return self.source_language, self.target_language

    def longest_target(self, sequence_length: int) -> int:
        """Longest target, tokens."""
        return self.target_length

    def texts(self, record: R.Record) -> list[str]:
        """The source with its prefix, and the target."""
        source = self.prefix + R.text(record, self.source_column, "source_column")
        return [source, R.text(record, self.target_column, "target_column")]


@dataclass(frozen=True, eq=False)
class Seq2Seq(Task):
    """``-log p(target token | source, target tokens before it)``, summed over the target tokens and their end.

    Sources and targets have the special tokens that the tokenizer puts around them: T5's end, BART's start and end, the
    language codes of mBART.
    """

    config: Seq2SeqConfig

    def __post_init__(self) -> None:
        R.check_length(self, 1)

    @cached_property
    def target_frame(self) -> Frame:
        """Special tokens around a target."""
        return frame_of(self.tokenizer, target=True)

    @property
    def start_id(self) -> int:
        """Id of the token before the first of a target: T5's padding, else the last of its frame (BART, mBART)."""
        after = self.target_frame.after
        return after[-1] if self.start == "sep" and after else super().start_id

    def rows(self, data: Sequence[R.Record]) -> Rows:
        """One row a record."""
        pad, source_frame, frame = special_id(self.tokenizer, "pad"), frame_of(self.tokenizer), self.target_frame
        texts = [self.config.texts(record) for record in data]
        sources = encode_batch(self.tokenizer, [source for source, _ in texts])
        targets = encode_batch(self.tokenizer, [target for _, target in texts])
        examples: list[Example] = []
        for source, target in zip(sources, targets, strict=True):
            inputs = source_frame.join(source, None, self.sequence_length).ids
            labels = frame.join(target, None, self.config.target_length).ids
            examples.append(two_sided_row(inputs, labels, self.start_id))
        fill = {"input_ids": pad, "decoder_input_ids": pad, "labels": F.IGNORE}
        lengths = dict.fromkeys(("decoder_input_ids", "labels"), self.config.target_length)
        return ExampleRows(examples, self.sequence_length, fill, lengths)

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Cross-entropy summed over the target tokens, nats."""
        options = self.config.model_dump(include={"chunk_tokens", "label_smoothing"})
        return token_loss(model, params, batch, dropout_key, **options)

    @property
    def export_keys(self) -> dict[str, Any]:
        """The prefix of sources."""
        return {"prefix": self.config.prefix} if self.config.prefix else {}

    def generation(self, config: TransformerConfig) -> dict[str, Any]:
        """The model's settings, but without sampling, with the start and the end of a target, and its length.

        Greedy search, or beam search where the settings of the pre-trained model say so.
        """
        of_model = read_settings(config.generation_settings, "model.generation")
        before, longest = self.target_frame.before, self.config.target_length
        shortest = max(of_model.pop("min_new_tokens", 0), (of_model.pop("min_length", None) or 1) - 1)
        of_model.pop("max_length", None)
        return {
            **of_model,
            "do_sample": False,
            "num_beams": of_model.get("num_beams", 1),
            "num_return_sequences": 1,
            "max_new_tokens": longest,
            "min_new_tokens": min(shortest, longest),
            "decoder_start_token_id": self.start_id,
            "eos_token_id": special_id(self.tokenizer, "sep"),
            **({"forced_bos_token_id": before[0]} if before else {}),
        }

    def predict(self, model: nn.Module, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """``tokens [B, target_length]``, as ``generation`` says, padded."""
        options = parse_options(self.generation(model.config))
        rules, numbers = compile_options(options, model.config)
        rows, longest = len(batch["input_ids"]), self.config.target_length
        start_ids = jnp.full(rows, self.start_id, jnp.int32)
        prompt = Prompt(batch["input_ids"], jnp.asarray(batch["attention_mask"], bool), start_ids)
        if options.num_beams == 1:
            seeds = jnp.zeros((rows, 2), jnp.int32)
            limits: dict[str, Any] = {"max_new_tokens": longest, "seeds": seeds, "start_ids": start_ids}
            return {"tokens": search(model, params, *prompt[:2], rules=rules, numbers=numbers, **limits).tokens}
        program = Program(rules, longest)
        params, limit = prepare(model, params), jnp.int32(longest)
        tokens = beam_search(model, params, prompt, limit, numbers, program=program, options=options)[0]
        return {"tokens": tokens}

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
