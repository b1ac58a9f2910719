"""Distillation: a student learns the probabilities that a teacher gives, on the data of another objective."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from pydantic import Field, model_validator

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig
from jaxformer.models.partition import shards
from jaxformer.tasks.base import Batch, LossSums, Report, Rows, Task, TaskSchema, apply
from jaxformer.tasks.causal_lm import CausalLMConfig
from jaxformer.tasks.denoising import DenoisingConfig
from jaxformer.tasks.instruction import InstructionConfig
from jaxformer.tasks.masked_lm import MaskedLMConfig
from jaxformer.tasks.prefix_lm import PrefixLMConfig
from jaxformer.tasks.seq2seq import Seq2SeqConfig
from jaxformer.tasks.span_corruption import SpanCorruptionConfig

# Objectives whose loss is the cross-entropy of one token in each place, and nothing else.
Inner = Annotated[
    CausalLMConfig
    | PrefixLMConfig
    | MaskedLMConfig
    | SpanCorruptionConfig
    | DenoisingConfig
    | Seq2SeqConfig
    | InstructionConfig,
    Field(discriminator="type"),
]


class DistillationConfig(TaskSchema):
    """Learn what a larger model says of the tokens of another objective."""

    architectures = ("encoder", "decoder", "encoder_decoder")
    # What is said of the data is what the inner objective says.
    reads: ClassVar[Any] = property(lambda self: self.of.reads)
    special_tokens: ClassVar[Any] = property(lambda self: self.of.special_tokens)
    sentinels: ClassVar[Any] = property(lambda self: self.of.sentinels)
    unit: ClassVar[Any] = property(lambda self: self.of.unit)
    report_at_end: ClassVar[Any] = property(lambda self: self.of.report_at_end)
    scored: ClassVar[Any] = property(lambda self: self.of.scored)

    type: Literal["distillation"] = Field("distillation", description="objective")
    teacher: str = Field(
        description="model that is learned from, with the same tokenizer: the output_dir of a run, a folder in the "
        "Hugging Face format, or owner/name on the Hub"
    )
    temperature: float = Field(2.0, gt=0, description="logits of both are divided by it: the higher, the softer")
    hard_weight: float = Field(0.5, ge=0, le=1, description="share of the cross-entropy of the data's own tokens")
    of: Inner = Field(
        default_factory=CausalLMConfig,
        description="objective that the data and the learned tokens are of; default: the family's own",
    )

    @model_validator(mode="after")
    def _of_plain_cross_entropy(self) -> "DistillationConfig":
        for key, plain in (("label_smoothing", 0.0), ("z_loss", 0.0), ("sentence_pairs", "none")):
            if (value := getattr(self.of, key, plain)) != plain:
                raise ValueError(
                    f"of.{key} is {value!r}, expected {plain!r}: a teacher says nothing of it; leave it out"
                )
        return self

    @property
    def teacher_source(self) -> str | None:
        """The model that is learned from."""
        return self.teacher

    @property
    def dialogue_template(self) -> str | None:
        """That of the inner objective."""
        return self.of.dialogue_template

    @property
    def longest_target(self) -> int:
        """That of the inner objective."""
        return self.of.longest_target

    def texts(self, record: Any) -> list[str]:
        """The texts of a record, which a tokenizer is trained on."""
        return self.of.texts(record)


class WithTeacher(NamedTuple):
    """What ``Distillation.loss`` takes as parameters: the student's, and the teacher's, which get no gradient."""

    student: Any
    teacher: Any


@dataclass(frozen=True, eq=False)
class Distillation(Task):
    """``(1 - w) t^2 KL(teacher || student) + w cross-entropy``, summed over the tokens that an objective trains.

    Hinton et al. 2015, section 2, forward divergence at temperature ``t``; for masked tokens Sanh et al. 2019,
    "DistilBERT", without its third term, which compares hidden states. The student has dropout, the teacher none.

    Args:
        config: Temperature and weight.
        of: The objective that rows and labels are of.
        teacher: The model that is learned from, None where nothing is to be trained.
    """

    config: DistillationConfig
    of: Task
    teacher: nn.Module | None = None

    def model(self, config: TransformerConfig) -> nn.Module:
        """The student, as the inner objective would train it."""
        return self.of.model(config)

    def rows(self, data: Any) -> Rows:
        """Those of the inner objective."""
        return self.of.rows(data)

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """Those of the inner objective."""
        return self.of.features(batch, generators, rows)

    @property
    def reports(self) -> bool:
        """Whether the inner objective has a report."""
        return self.of.reports

    def predict(self, model: nn.Module, params: WithTeacher, batch: Batch) -> dict[str, jax.Array]:
        """What the inner objective's report needs of the student."""
        return self.of.predict(model, params.student, batch)

    def report(self, data: Sequence[Any], outputs: dict[str, np.ndarray]) -> Report:
        """That of the inner objective."""
        return self.of.report(data, outputs)

    def loss(self, model: nn.Module, params: WithTeacher, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Sums over the tokens, nats; ``agreement`` counts those whose most probable word both models share."""
        assert self.teacher is not None, "a run that trains has opened its teacher"
        inputs = {name: array for name, array in batch.items() if name != "labels"}
        frozen = jax.lax.stop_gradient(params.teacher)
        teacher_hidden, teacher_head = apply(self.teacher, frozen, inputs, None, "hidden_and_head")
        hidden, head = apply(model, params.student, inputs, dropout_key, "hidden_and_head")
        sums = F.chunked_distillation_loss(
            hidden,
            head,
            teacher_hidden,
            teacher_head,
            batch["labels"],
            temperature=self.config.temperature,
            hard_weight=self.config.hard_weight,
            chunk_tokens=self.config.of.chunk_tokens * shards("batch") * shards("length"),
        )
        metrics = {
            "loss": sums.total,
            "divergence": sums.divergence,
            "cross_entropy": sums.cross_entropy,
            "agreement": sums.agreed,
        }
        return LossSums(sums.total, sums.tokens, metrics)


def distillation(config: DistillationConfig, of: Task, teacher: TransformerConfig | None) -> Distillation:
    """The objective around another; ``teacher`` describes the model that is learned from."""
    return Distillation(config, of, None if teacher is None else of.model(teacher))
