"""The Hugging Face format and the Hub: models and tokenizers read from there and written back."""

from jaxformer.hub.auto import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
    AutoSentenceEncoder,
    CLIPTextModelWithProjection,
    EncoderDecoderModel,
)
from jaxformer.hub.pretrained import Pretrained, PretrainedWarning
from jaxformer.hub.save import push_to_hub, save_pretrained
from jaxformer.hub.tokenizer import AutoTokenizer

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForNextSentencePrediction",
    "AutoModelForPreTraining",
    "AutoModelForQuestionAnswering",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTextEncoding",
    "AutoModelForTokenClassification",
    "AutoSentenceEncoder",
    "AutoTokenizer",
    "CLIPTextModelWithProjection",
    "EncoderDecoderModel",
    "Pretrained",
    "PretrainedWarning",
    "push_to_hub",
    "save_pretrained",
]
