"""The objectives, one file each."""

from jaxformer.data.config import DataConfig
from jaxformer.tasks.base import Batch, LossSums, Report, ReportingTask, Task, TaskSchema
from jaxformer.tasks.causal_lm import CausalLM, CausalLMConfig
from jaxformer.tasks.multiple_choice import MultipleChoice, MultipleChoiceConfig
from jaxformer.tasks.question_answering import QuestionAnswering, QuestionAnsweringConfig
from jaxformer.tasks.seq2seq import Seq2Seq, Seq2SeqConfig
from jaxformer.tasks.sequence_classification import SequenceClassification, SequenceClassificationConfig
from jaxformer.tasks.token_classification import TokenClassification, TokenClassificationConfig
from jaxformer.tokenizers import Tokenizer

TaskConfig = CausalLMConfig


def build_task(config: TaskConfig, tokenizer: Tokenizer, sequence_length: int, data: DataConfig) -> Task:
    """The objective a configuration describes, bound to what it needs to know of the run."""
    return CausalLM(config, sequence_length, data.layout)


__all__ = [
    "Batch",
    "CausalLM",
    "CausalLMConfig",
    "LossSums",
    "MultipleChoice",
    "MultipleChoiceConfig",
    "QuestionAnswering",
    "QuestionAnsweringConfig",
    "Report",
    "ReportingTask",
    "Seq2Seq",
    "Seq2SeqConfig",
    "SequenceClassification",
    "SequenceClassificationConfig",
    "Task",
    "TaskConfig",
    "TaskSchema",
    "TokenClassification",
    "TokenClassificationConfig",
    "build_task",
]
