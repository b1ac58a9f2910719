"""The kinds of models in the Hugging Face format, named by their heads, and a model's initial parameters."""

from collections.abc import Collection
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from jaxformer.families import get_family
from jaxformer.models.config import TransformerConfig
from jaxformer.models.heads import (
    Body,
    MultipleChoice,
    NextSentence,
    QuestionAnswering,
    SequenceClassifier,
    TextEncoder,
    TextProjection,
    TokenClassifier,
)
from jaxformer.models.masked_lm import Discriminator, MaskedLM
from jaxformer.models.sentence_encoder import SentenceEncoder
from jaxformer.models.transformer import Decoder, EncoderDecoder
from jaxformer.schema import UserError


class Kind(NamedTuple):
    """A kind of model.

    Attributes:
        model: its class here.
        opener: the class that opens it, here and in transformers.
        task: its task on the Hub.
        architecture: the one it has, None for all; which families have it in transformers is said by their formats.
    """

    model: type[nn.Module]
    opener: str
    task: str | None
    architecture: str | None = None


KINDS = {
    "body": Kind(Body, "AutoModel", "feature-extraction"),
    "causal_lm": Kind(Decoder, "AutoModelForCausalLM", "text-generation", "decoder"),
    "text_projection": Kind(TextProjection, "CLIPTextModelWithProjection", "feature-extraction", "decoder"),
    "text_encoding": Kind(TextEncoder, "AutoModelForTextEncoding", "feature-extraction", "encoder_decoder"),
    "masked_lm": Kind(MaskedLM, "AutoModelForMaskedLM", "fill-mask", "encoder"),
    "pre_training": Kind(Discriminator, "AutoModelForPreTraining", None, "encoder"),
    "seq2seq_lm": Kind(EncoderDecoder, "AutoModelForSeq2SeqLM", "text2text-generation", "encoder_decoder"),
    "sequence_classification": Kind(SequenceClassifier, "AutoModelForSequenceClassification", "text-classification"),
    "token_classification": Kind(TokenClassifier, "AutoModelForTokenClassification", "token-classification"),
    "question_answering": Kind(QuestionAnswering, "AutoModelForQuestionAnswering", "question-answering"),
    "multiple_choice": Kind(MultipleChoice, "AutoModelForMultipleChoice", "multiple-choice"),
    "next_sentence_prediction": Kind(NextSentence, "AutoModelForNextSentencePrediction", None, "encoder"),
}
# Types whose body was trained with a pooler of its own.
WITH_POOLER = ("bert", "big_bird", "roberta", "xlm_roberta", "roberta_prelayernorm", "albert", "mpnet", "clip_text")


def build(config: TransformerConfig, kind: str, *, num_labels: int = 2, labels: tuple[str, ...] = ()) -> nn.Module:
    """The model of this kind.

    Raises:
        UserError: if the architecture has no such head.
    """
    fits = KINDS[kind].architecture or config.architecture
    if config.architecture != fits:
        raise UserError(
            f"a {config.type} model has the architecture {config.architecture}, expected {fits} for the head {kind}; "
            "choose another head or another model"
        )
    own = get_family(config.type).defaults.get("architecture", "decoder")
    if config.architecture == "decoder" != own and kind not in ("body", "causal_lm"):
        raise UserError(
            f"a {config.type} model has the architecture decoder, expected {own} for the head {kind}: as a decoder it "
            "is a language model only"
        )
    if kind == "body":
        return Body(config, config.type in WITH_POOLER)
    if kind == "pre_training" and config.type != "electra":
        return MaskedLM(config, sentence_pairs=True)
    if kind in ("sequence_classification", "token_classification"):
        return KINDS[kind].model(config, num_labels, labels)
    return KINDS[kind].model(config)


def kind_of(model: nn.Module) -> str:
    """The kind a model is of; what a sentence encoder has on its body is in files of its own.

    Raises:
        UserError: if it is none that the Hugging Face format knows.
    """
    if isinstance(model, MaskedLM):
        return "pre_training" if model.sentence_pairs else "masked_lm"
    if isinstance(model, SentenceEncoder):
        return "body"
    for name, kind in KINDS.items():
        if type(model) is kind.model:
            return name
    raise UserError(f"{type(model).__name__} is no model that the Hugging Face format knows")


def init(model: Any, key: jax.Array) -> Any:
    """Initial parameters with their logical axes."""
    return model.init(key, jnp.zeros(getattr(model, "init_shape", (1, 2)), jnp.int32))["params"]


def abstract_params(model: Any) -> Any:
    """The model's parameters as shapes, with their logical axes."""
    # The arguments are made inside: outside of the trace each would compile and run a program.
    return jax.eval_shape(lambda: init(model, jax.random.key(0)))


def init_params(model: Any, key: jax.Array, names: Collection[str], shardings: Any = None) -> dict[str, jax.Array]:
    """Initial values of some parameters, by path; what is not asked for is never in memory."""

    def some(key: jax.Array) -> dict[str, jax.Array]:
        flat = flatten_dict(nn.unbox(init(model, key)), sep="/")
        return {name: flat[name] for name in names}

    return jax.jit(some, out_shardings=shardings)(key)
