"""The training objectives, one file each."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from jaxformer.families import FAMILIES
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError, nearest
from jaxformer.tasks.base import Task, TaskSchema
from jaxformer.tasks.causal_lm import CausalLM, CausalLMConfig
from jaxformer.tasks.denoising import Denoising, DenoisingConfig
from jaxformer.tasks.distillation import Distillation, DistillationConfig, Inner
from jaxformer.tasks.dpo import DPO, DPOConfig
from jaxformer.tasks.embedding import Embedding, EmbeddingConfig
from jaxformer.tasks.instruction import Instruction, InstructionConfig
from jaxformer.tasks.masked_lm import MaskedLanguageModelling, MaskedLMConfig
from jaxformer.tasks.multiple_choice import MultipleChoice, MultipleChoiceConfig
from jaxformer.tasks.policy import GRPOConfig, Policy, PolicyConfig, PPOConfig, RLOOConfig
from jaxformer.tasks.prefix_lm import PrefixLM, PrefixLMConfig
from jaxformer.tasks.question_answering import QuestionAnswering, QuestionAnsweringConfig
from jaxformer.tasks.ranking import Ranking, RankingConfig
from jaxformer.tasks.replaced_token_detection import ReplacedTokenDetection, ReplacedTokenDetectionConfig
from jaxformer.tasks.reward import Reward, RewardConfig
from jaxformer.tasks.seq2seq import Seq2Seq, Seq2SeqConfig
from jaxformer.tasks.sequence_classification import SequenceClassification, SequenceClassificationConfig
from jaxformer.tasks.span_corruption import SpanCorruption, SpanCorruptionConfig
from jaxformer.tasks.token_classification import TokenClassification, TokenClassificationConfig
from jaxformer.tokenizers import PreTrainedTokenizer

TaskConfig = Annotated[
    CausalLMConfig
    | PrefixLMConfig
    | MaskedLMConfig
    | ReplacedTokenDetectionConfig
    | SpanCorruptionConfig
    | DenoisingConfig
    | SequenceClassificationConfig
    | TokenClassificationConfig
    | QuestionAnsweringConfig
    | MultipleChoiceConfig
    | EmbeddingConfig
    | RankingConfig
    | Seq2SeqConfig
    | InstructionConfig
    | DistillationConfig
    | RewardConfig
    | DPOConfig
    | PPOConfig
    | GRPOConfig
    | RLOOConfig,
    Field(discriminator="type"),
]
TASKS: dict[str, type[TaskSchema]] = {
    config.model_fields["type"].default: config for config in get_args(get_args(TaskConfig)[0])
}
# Objectives of a distillation.
INNER = {name: task for name, task in TASKS.items() if task in get_args(get_args(Inner)[0])}


def task_config(keys: Mapping[str, Any], model: Mapping[str, Any], section: str = "task") -> dict[str, Any]:
    """The task's keys; ``type`` defaults to the pre-training objective of the model's family."""
    known = TASKS if section == "task" else INNER
    name = str(keys.get("type", FAMILIES[model["type"]].objective))
    if name not in known:
        raise UserError(f"{section}.type is {name!r}, expected one of {', '.join(known)}{nearest(name, known)}")
    if name == "distillation" and isinstance(of := keys.get("of", {}), Mapping):
        keys = {**keys, "of": task_config(of, model, f"{section}.of")}
    return {**keys, "type": name}


def check_fit(task: TaskSchema, model: TransformerConfig, section: str = "task") -> None:
    """Refuses an objective that cannot train the model, naming model types and objectives that go together."""
    if isinstance(task, DistillationConfig):
        check_fit(task.of, model, f"{section}.of")
        return
    if model.architecture in task.architectures:
        return
    models = [n for n, f in FAMILIES.items() if f.defaults.get("architecture", "decoder") in task.architectures]
    known = TASKS if section == "task" else INNER
    tasks = [n for n, t in known.items() if model.architecture in t.architectures]
    wanted = " or ".join(architecture.replace("_", "-") for architecture in task.architectures)
    key, got = f"{section}.type", model.architecture.replace("_", "-")
    raise UserError(
        f"{key} {name_of(task)} does not go with model.type {model.type} ({got}), expected {wanted}: "
        f"set model.type to one of {', '.join(models)}, or {key} to one of {', '.join(tasks)}"
    )


def name_of(task: TaskSchema) -> str:
    """The ``task.type`` of a configuration."""
    return str(type(task).model_fields["type"].default)


_TASKS: dict[type[TaskSchema], type[Task]] = {
    CausalLMConfig: CausalLM,
    PrefixLMConfig: PrefixLM,
    MaskedLMConfig: MaskedLanguageModelling,
    ReplacedTokenDetectionConfig: ReplacedTokenDetection,
    SpanCorruptionConfig: SpanCorruption,
    DenoisingConfig: Denoising,
    SequenceClassificationConfig: SequenceClassification,
    TokenClassificationConfig: TokenClassification,
    QuestionAnsweringConfig: QuestionAnswering,
    MultipleChoiceConfig: MultipleChoice,
    EmbeddingConfig: Embedding,
    RankingConfig: Ranking,
    Seq2SeqConfig: Seq2Seq,
    InstructionConfig: Instruction,
    RewardConfig: Reward,
    DPOConfig: DPO,
    PPOConfig: Policy,
    GRPOConfig: Policy,
    RLOOConfig: Policy,
}


def build_task(
    config: TaskSchema,
    tokenizer: PreTrainedTokenizer,
    model: TransformerConfig,
    sequence_length: int,
    layout: Literal["packed", "stream"] = "packed",
    train_records: Sequence[Mapping[str, Any]] = (),
    teacher: TransformerConfig | None = None,
) -> Task:
    """The objective of a configuration; see ``Task`` for the arguments."""
    if isinstance(config, DistillationConfig):
        of = build_task(config.of, tokenizer, model, sequence_length, layout, train_records)
        opened = None if teacher is None else of.model(teacher)
        return Distillation(config, tokenizer, sequence_length, model.architecture, of=of, teacher=opened)
    if not isinstance(config, CausalLMConfig) and layout != "packed":
        raise UserError(f"data.layout is {layout!r}, expected packed for {name_of(config)}; leave it out")
    # mBART starts with a language code; a text of one language starts with the end token, as BART's.
    start: Literal["pad", "cls", "sep"] = "sep" if model.decoder_start == "last" else model.decoder_start
    kind = _TASKS[type(config)]
    return kind(config, tokenizer, sequence_length, model.architecture, start, layout, train_records)
