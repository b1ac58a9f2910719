"""Distillation: a student learns the probabilities of a teacher on the data of another objective."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from pydantic import Field, model_validator

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import LocalPath
from jaxformer.tasks.base import Batch, LossSums, Report, Rows, Task, TaskSchema, apply, global_chunk
from jaxformer.tasks.causal_lm import CausalLMConfig
from jaxformer.tasks.denoising import DenoisingConfig
from jaxformer.tasks.instruction import InstructionConfig
from jaxformer.tasks.masked_lm import MaskedLMConfig
from jaxformer.tasks.prefix_lm import PrefixLMConfig
from jaxformer.tasks.seq2seq import Seq2SeqConfig
from jaxformer.tasks.span_corruption import SpanCorruptionConfig

# Objectives whose loss is a cross-entropy over tokens and nothing else.
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
    """Learn the probabilities of a teacher for the tokens of another objective."""

    architectures = ("encoder", "decoder", "encoder_decoder")
    # The data are those of the inner objective.
    reads: ClassVar[Any] = property(attrgetter("of.reads"))
    special_tokens: ClassVar[Any] = property(attrgetter("of.special_tokens"))
    frame_tokens: ClassVar[Any] = property(attrgetter("of.frame_tokens"))
    longest_target: ClassVar[Any] = property(attrgetter("of.longest_target"))
    sentinels: ClassVar[Any] = property(attrgetter("of.sentinels"))
    unit: ClassVar[Any] = property(attrgetter("of.unit"))
    report_at_end: ClassVar[Any] = property(attrgetter("of.report_at_end"))
    scored: ClassVar[Any] = property(attrgetter("of.scored"))
    dialogue_template: ClassVar[Any] = property(attrgetter("of.dialogue_template"))

    type: Literal["distillation"] = Field("distillation", description="objective")
    teacher: LocalPath = Field(
        description="teacher model with the same tokenizer: the output_dir of a run, a folder in the Hugging Face "
        "format, or owner/name on the Hub"
    )
    temperature: float = Field(2.0, gt=0, description="divisor of the logits of both models; higher is softer")
    hard_weight: float = Field(0.5, ge=0, le=1, description="weight of the cross-entropy of the data's tokens")
    of: Inner = Field(
        default_factory=CausalLMConfig,
        description="objective that defines the data and the trained tokens; default: that of the model's family",
    )

    @model_validator(mode="after")
    def _of_plain_cross_entropy(self) -> "DistillationConfig":
        settings = self.of.model_dump()
        for key, plain in (("label_smoothing", 0.0), ("z_loss", 0.0), ("sentence_pairs", "none")):
            if (value := settings.get(key, plain)) != plain:
                raise ValueError(f"of.{key} is {value!r}, expected {plain!r} with a teacher; leave it out")
        return self

    @property
    def teacher_source(self) -> str:
        """The teacher model."""
        return self.teacher

    def texts(self, record: Any) -> list[str]:
        """Those of the inner objective."""
        return self.of.texts(record)


class WithTeacher(NamedTuple):
    """Parameters of ``Distillation.loss``: the student's, and the teacher's, which get no gradient."""

    student: Any
    teacher: Any


@dataclass(frozen=True, eq=False)
class Distillation(Task):
    """``(1 - w) t^2 KL(teacher || student) + w cross-entropy``, summed over the trained tokens of another objective.

    Hinton et al. 2015, section 2, forward divergence at temperature ``t``; for masked tokens Sanh et al. 2019,
    "DistilBERT", without its third term, which compares hidden states. The student has dropout, the teacher none.
    ``of`` defines rows and labels; ``teacher`` is None if nothing is trained.
    """

    config: DistillationConfig
    of: Task = field(kw_only=True)
    teacher: nn.Module | None = field(default=None, kw_only=True)

    @property
    def export_keys(self) -> dict[str, Any]:
        """Those of the inner objective."""
        return self.of.export_keys

    def generation(self, config: TransformerConfig) -> dict[str, Any]:
        """That of the inner objective."""
        return self.of.generation(config)

    def model(self, config: TransformerConfig) -> nn.Module:
        """The student, a model of the inner objective."""
        return self.of.model(config)

    def rows(self, data: Any) -> Rows:
        """Those of the inner objective."""
        return self.of.rows(data)

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """Those of the inner objective."""
        return self.of.features(batch, generators, rows)

    @property
    def reports(self) -> bool:
        """The inner objective has a report."""
        return self.of.reports

    def predict(self, model: nn.Module, params: WithTeacher, batch: Batch) -> dict[str, jax.Array]:
        """The student's outputs for the inner objective's report."""
        return self.of.predict(model, params.student, batch)

    def report(self, data: Sequence[Any], outputs: dict[str, np.ndarray]) -> Report:
        """That of the inner objective."""
        return self.of.report(data, outputs)

    def label_losses(self, model: nn.Module, params: WithTeacher, batch: Batch) -> jax.Array | None:
        """The student's, as the inner objective's."""
        return self.of.label_losses(model, params.student, batch)

    def loss(self, model: nn.Module, params: WithTeacher, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Sums over the tokens, nats; ``agreement`` counts the tokens whose most probable prediction is the same."""
        assert self.teacher is not None, "training has opened the teacher"
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
            chunk_tokens=global_chunk(self.config.of.chunk_tokens),
        )
        metrics = {"loss": sums.total, "divergence": sums.divergence, "cross_entropy": sums.cross_entropy}
        return LossSums(sums.total, sums.tokens, {**metrics, "agreement": sums.agreed})
