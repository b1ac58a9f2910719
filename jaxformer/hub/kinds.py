"""The model class of each kind of head in the Hugging Face format, and its initial parameters."""

from collections.abc import Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from jaxformer.models.config import TransformerConfig
from jaxformer.models.heads import Body, MultipleChoice, QuestionAnswering, SequenceClassifier, TokenClassifier
from jaxformer.models.masked_lm import Discriminator, MaskedLM
from jaxformer.models.transformer import Decoder, EncoderDecoder
from jaxformer.schema import UserError

# The kinds an architecture has; which of them transformers has for a family is said by the family's format.
ARCHITECTURES = {
    "causal_lm": ("decoder",),
    "masked_lm": ("encoder",),
    "pre_training": ("encoder",),
    "seq2seq_lm": ("encoder_decoder",),
}


def build(config: TransformerConfig, kind: str, *, num_labels: int = 2, labels: tuple[str, ...] = ()) -> nn.Module:
    """The model of this kind.

    Raises:
        UserError: if the architecture has no such head.
    """
    fits = ARCHITECTURES.get(kind, (config.architecture,))
    if config.architecture not in fits:
        raise UserError(
            f"a {config.type} model has the architecture {config.architecture}, expected {' or '.join(fits)} for the "
            f"head {kind}; choose another head or another model"
        )
    match kind:
        case "body":
            # These three were trained with a pooler that belongs to the body.
            return Body(config, config.type in ("bert", "roberta", "xlm_roberta", "albert"))
        case "causal_lm":
            return Decoder(config)
        case "seq2seq_lm":
            return EncoderDecoder(config)
        case "masked_lm":
            return MaskedLM(config)
        case "pre_training":
            return Discriminator(config) if config.type == "electra" else MaskedLM(config, sentence_pairs=True)
        case "sequence_classification":
            return SequenceClassifier(config, num_labels, labels)
        case "token_classification":
            return TokenClassifier(config, num_labels, labels)
        case "question_answering":
            return QuestionAnswering(config)
        case "multiple_choice":
            return MultipleChoice(config)
    raise AssertionError(kind)


def kind_of(model: nn.Module) -> str:
    """The kind a model is of.

    Raises:
        UserError: if it is none that the Hugging Face format knows.
    """
    kinds: dict[type[nn.Module], str] = {
        Body: "body",
        Decoder: "causal_lm",
        EncoderDecoder: "seq2seq_lm",
        MultipleChoice: "multiple_choice",
        SequenceClassifier: "sequence_classification",
        TokenClassifier: "token_classification",
        QuestionAnswering: "question_answering",
        Discriminator: "pre_training",
    }
    if isinstance(model, MaskedLM):
        return "pre_training" if model.sentence_pairs else "masked_lm"
    if type(model) not in kinds:
        raise UserError(f"{type(model).__name__} is no model that the Hugging Face format knows")
    return kinds[type(model)]


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
