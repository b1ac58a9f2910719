"""The objectives, one file each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from jaxformer.families import FAMILIES
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError, nearest
from jaxformer.tasks.base import Batch, LossSums, Report, Task, TaskSchema
from jaxformer.tasks.causal_lm import CausalLM, CausalLMConfig
from jaxformer.tasks.denoising import Denoising, DenoisingConfig
from jaxformer.tasks.distillation import Distillation, DistillationConfig, Inner, WithTeacher, distillation
from jaxformer.tasks.dpo import DPO, DPOConfig
from jaxformer.tasks.instruction import Instruction, InstructionConfig
from jaxformer.tasks.masked_lm import MaskedLanguageModelling, MaskedLMConfig
from jaxformer.tasks.multiple_choice import MultipleChoice, MultipleChoiceConfig
from jaxformer.tasks.policy import GRPOConfig, Policy, PolicyConfig, PPOConfig, RLOOConfig
from jaxformer.tasks.prefix_lm import PrefixLM, PrefixLMConfig
from jaxformer.tasks.question_answering import QuestionAnswering, QuestionAnsweringConfig
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
# Those that a student can be taught on.
INNER = {name: task for name, task in TASKS.items() if task in get_args(get_args(Inner)[0])}


def task_config(keys: Mapping[str, Any], model: Mapping[str, Any], section: str = "task") -> dict[str, Any]:
    """The task's keys; without a ``type`` the objective that the model's family was made for.

    Raises:
        UserError: if there is no such objective; names the nearest.
    """
    known = TASKS if section == "task" else INNER
    name = str(keys.get("type", FAMILIES[model["type"]].objective))
    if name not in known:
        raise UserError(f"{section}.type is {name!r}, expected one of {', '.join(known)}{nearest(name, known)}")
    if name == "distillation" and isinstance(of := keys.get("of", {}), Mapping):
        keys = {**keys, "of": task_config(of, model, f"{section}.of")}
    return {**keys, "type": name}


def check_fit(task: TaskSchema, model: TransformerConfig, section: str = "task") -> None:
    """Refuses an objective that cannot train such a model.

    Raises:
        UserError: naming the model types that fit the objective and the objectives that fit the model.
    """
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


@dataclass(frozen=True)
class Bound:
    """What an objective needs to know of a run.

    Attributes:
        tokenizer: with the special tokens that the objective asks for.
        model: of the body.
        sequence_length: T.
        layout: how text is cut into rows.
        train_records: the training data, for objectives that read records.
        teacher: the model that the run learns from, where there is one.
    """

    tokenizer: PreTrainedTokenizer
    model: TransformerConfig
    sequence_length: int
    layout: Literal["packed", "stream"] = "packed"
    train_records: Sequence[Mapping[str, Any]] = ()
    teacher: TransformerConfig | None = None


def build_task(config: TaskSchema, to: Bound) -> Task:
    """The objective a configuration describes, bound to what it needs to know of the run.

    Raises:
        UserError: if the data's layout does not go with it.
    """
    if isinstance(config, DistillationConfig):
        return distillation(config, build_task(config.of, to), to.teacher)
    if not isinstance(config, CausalLMConfig) and to.layout != "packed":
        raise UserError(f"data.layout is {to.layout!r}, expected packed for {name_of(config)}; leave it out")
    tokenizer, T = to.tokenizer, to.sequence_length
    # mBART begins with the mark of a language; a text of one language begins with the token that ends it, as BART's.
    start: Literal["pad", "sep"] = "sep" if to.model.decoder_start == "last" else to.model.decoder_start
    match config:
        case CausalLMConfig():
            return CausalLM(config, T, to.layout)
        case PrefixLMConfig():
            return PrefixLM(config, tokenizer, T, to.model.architecture, start)
        case MaskedLMConfig():
            return MaskedLanguageModelling(config, tokenizer, T)
        case ReplacedTokenDetectionConfig():
            return ReplacedTokenDetection(config, tokenizer, T)
        case SpanCorruptionConfig():
            return SpanCorruption(config, tokenizer, T, start)
        case DenoisingConfig():
            return Denoising(config, tokenizer, T, start)
        case Seq2SeqConfig():
            return Seq2Seq(config, tokenizer, T, to.train_records, start)
        case InstructionConfig():
            return Instruction(config, tokenizer, T, to.model.architecture, start)
        case RewardConfig():
            return Reward(config, tokenizer, T)
        case DPOConfig():
            return DPO(config, tokenizer, T, to.model.architecture, start)
        case PolicyConfig():
            return Policy(config, tokenizer, T, to.model.architecture, start)
    supervised: dict[type[TaskSchema], Any] = {
        SequenceClassificationConfig: SequenceClassification,
        TokenClassificationConfig: TokenClassification,
        QuestionAnsweringConfig: QuestionAnswering,
        MultipleChoiceConfig: MultipleChoice,
    }
    return supervised[type(config)](config, tokenizer, T, to.train_records)


__all__ = [
    "DPO",
    "INNER",
    "TASKS",
    "Batch",
    "Bound",
    "CausalLM",
    "CausalLMConfig",
    "DPOConfig",
    "Distillation",
    "DistillationConfig",
    "Instruction",
    "InstructionConfig",
    "LossSums",
    "MultipleChoice",
    "MultipleChoiceConfig",
    "Policy",
    "PolicyConfig",
    "QuestionAnswering",
    "QuestionAnsweringConfig",
    "Report",
    "Reward",
    "RewardConfig",
    "Seq2Seq",
    "Seq2SeqConfig",
    "SequenceClassification",
    "SequenceClassificationConfig",
    "Task",
    "TaskConfig",
    "TaskSchema",
    "TokenClassification",
    "TokenClassificationConfig",
    "WithTeacher",
    "build_task",
    "check_fit",
    "name_of",
    "task_config",
]
