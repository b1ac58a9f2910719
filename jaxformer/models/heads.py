"""Heads on a backbone (encoder, decoder or encoder-decoder).

The parameters of a head are on the same level as those of the backbone: ``embeddings``, ``layers`` and so on have the
same names with any head or none, so that another task can take over a trained backbone name by name.
"""

from dataclasses import replace
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig
from jaxformer.models.dense import Dense
from jaxformer.models.inputs import Inputs
from jaxformer.models.layers import DropoutKeys, FeedForward, Norm, activate
from jaxformer.models.outputs import BodyOutput, HeadOutput, Layers, SpanOutput, TextEmbedding
from jaxformer.models.transformer import BODIES


def pool(config: TransformerConfig, hidden: jax.Array, attention_mask: Any, pooling: str) -> jax.Array:
    """``functional.pool_states``, by the numerics of the model."""
    real = jnp.ones(hidden.shape[:2], bool) if attention_mask is None else jnp.asarray(attention_mask, bool)
    if not config.exact or pooling != "mean":
        return F.pool_states(hidden, real, pooling)
    summed = jnp.where(real[..., None], hidden.astype(jnp.float32), 0.0)
    # In order, token after token, zeros wherever they are: no sum depends on the length.
    add = lambda total, x: (total + x, None)  # noqa: E731
    total = jax.lax.scan(add, jnp.zeros_like(summed[:, 0]), summed.swapaxes(0, 1))[0]
    return (total / jnp.maximum(jnp.sum(real, axis=1), 1)[:, None]).astype(hidden.dtype)


class Pooler(nn.Module):
    """One state for the whole text: that of its first token, that of its last, which has seen all others, or the mean.

    If the configuration names a ``pooler``, a dense layer with that activation follows (Devlin et al. 2019, section
    3.1), in ModernBERT with a norm after it.
    """

    config: TransformerConfig

    def setup(self) -> None:
        """Declares the dense layer and its norm."""
        c = self.config
        if c.pooler is not None:
            self.dense = Dense(c, c.hidden_size, None, c.use_bias if c.pooler_norm else True)
            if c.pooler_norm:
                self.norm = Norm(c)

    def __call__(self, hidden: jax.Array, attention_mask: Any) -> jax.Array:
        """``[B, T, D]`` to ``[B, D]``."""
        pooling = "first" if self.config.pooled_state == "end" else self.config.pooled_state
        return self.transform(pool(self.config, hidden, attention_mask, pooling))

    def transform(self, x: jax.Array) -> jax.Array:
        """Applies the dense layer with activation and norm to ``[..., D]``, if there is one."""
        c = self.config
        if c.pooler is None:
            return x
        x = activate(c, c.pooler, self.dense(x))
        return self.norm(x) if c.pooler_norm else x


def pooled_tokens(config: TransformerConfig, inputs: Inputs) -> Any:
    """The tokens of which one is pooled, ``[B, T]`` bool, as in transformers.

    Of CLIP its ends. A classifier that is a decoder, or T5Gemma, reads none that is the padding token, another
    encoder-decoder its end token where a text has one. Without ids the mask alone tells what is padding.
    """
    c, ids, mask = config, inputs.input_ids, inputs.attention_mask
    real = jnp.ones(inputs.shape, bool) if mask is None else jnp.asarray(mask, bool)
    if ids is None:
        return real
    ids = jnp.asarray(ids)
    if c.pooled_state == "end":
        # The first files call the end token 2, and mean the highest id of a text.
        highest = ids == jnp.max(jnp.where(real, ids, -1), axis=-1, keepdims=True)
        return real & (highest if c.eos_token_id in (2, None) else jnp.isin(ids, jnp.array(c.end_ids)))
    if (c.architecture == "decoder" or c.encoder is not None) and c.pad_token_id is not None:
        return real & (ids != c.pad_token_id)
    if c.architecture == "encoder_decoder" and c.encoder is None and c.end_ids:
        ends = real & jnp.isin(ids, jnp.array(c.end_ids))
        return jnp.where(jnp.any(ends, axis=-1, keepdims=True), ends, real)
    return real


class WithBody(nn.Module):
    """Base of the models with a head, whose parameters stand beside those of the backbone."""

    config: TransformerConfig

    def setup(self) -> None:
        """Declares the backbone."""
        self.body = BODIES[self.config.architecture](self.config)
        nn.share_scope(self, self.body)
        self.head_dropout_keys = DropoutKeys()

    def states(self, inputs: Inputs) -> tuple[jax.Array, dict[str, Layers]]:
        """The last hidden states ``[B, T, D]``, and what was asked for of every layer, by its name in the output.

        An encoder-decoder reads the text on both sides.
        """
        if self.config.architecture == "encoder_decoder":
            _, hidden, layers = self.body.both(inputs)
        else:
            hidden, _, layers = self.body.hidden_states(inputs)
        return hidden, layers

    def drop(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """Dropout before the head."""
        rate = self.config.dropout
        return F.dropout(x, rate, self.head_dropout_keys(rate, inputs.dropout_ids))


class Body(WithBody):
    """A backbone without a head.

    Attributes:
        config: of the model.
        pooled: whether it has a pooler, as the first encoders.
    """

    pooled: bool = False

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        if self.pooled:
            self.pooler = Pooler(self.config)

    def __call__(self, *args: Any, **kwargs: Any) -> BodyOutput:
        """The last hidden states; arguments are ``Inputs``."""
        inputs = Inputs(*args, **kwargs)
        if self.config.architecture == "encoder_decoder":
            encoded, hidden, layers = self.body.both(inputs)
            return BodyOutput(hidden, None, encoded, **layers)
        states, layers = self.states(inputs)
        pooled = self.pooler(states, pooled_tokens(self.config, inputs)) if self.pooled else None
        return BodyOutput(states, pooled, None, **layers)


class TextProjection(WithBody):
    """CLIP's text encoder (Radford et al. 2021, "Learning Transferable Visual Models", section 2.4).

    The state of the end-of-text token, projected without a bias to the space that texts and images share.
    """

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        c = self.config
        self.pooler = Pooler(c)
        self.text_projection = Dense(c, c.projection_width, None, False)

    def __call__(self, *args: Any, **kwargs: Any) -> TextEmbedding:
        """The embedding ``[B, P]`` of each text; arguments are ``Inputs``."""
        inputs = Inputs(*args, **kwargs)
        states, layers = self.states(inputs)
        pooled = self.pooler(states, pooled_tokens(self.config, inputs))
        return TextEmbedding(self.text_projection(pooled).astype(jnp.float32), states, **layers)


class TextEncoder(WithBody):
    """The encoder of an encoder-decoder alone; the decoder has no parameters then."""

    def __call__(self, *args: Any, **kwargs: Any) -> BodyOutput:
        """The encoder's last hidden states; arguments are ``Inputs``."""
        context, layers = self.body.encode_inputs(Inputs(*args, **kwargs))
        return BodyOutput(context.hidden, **layers)


class SequenceClassifier(WithBody):
    """One score per class for the whole text; with ``num_labels`` 1 a regression.

    Attributes:
        config: of the model.
        num_labels: number of classes ``C``.
        labels: names of the classes, if they have names.
    """

    num_labels: int = 2
    labels: tuple[str, ...] = ()
    chooses: ClassVar[bool] = False  # whether the texts are choices
    activates: ClassVar[bool] = True  # whether the pooler has the activation of classifiers

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        c = self.config
        changes: dict[str, Any] = {}
        if self.chooses and not c.choice_pooler:
            changes = {"pooler": None, "pooling": "last"}
        elif self.activates and c.classifier_pooler is not None:
            changes = {"pooler": c.classifier_pooler}
        self.pooler = Pooler(c.model_copy(update=changes))
        self.classifier = Dense(self.config, self.num_labels, "classes", self.config.architecture != "decoder")

    def __call__(self, *args: Any, **kwargs: Any) -> HeadOutput:
        """Logits ``[B, C]``; arguments are ``Inputs``.

        Raises:
            ValueError: if an encoder-decoder is given ``inputs_embeds``, of which no end token can be told.
        """
        inputs = Inputs(*args, **kwargs)
        if self.config.architecture == "encoder_decoder" and inputs.input_ids is None:
            raise ValueError(
                "inputs_embeds is given to a classifier of an encoder-decoder, expected input_ids: its end token is "
                "found by its id"
            )
        states, layers = self.states(inputs)
        pooled = self.drop(self.pooler(states, pooled_tokens(self.config, inputs)), inputs)
        return HeadOutput(self.classifier(pooled).astype(jnp.float32), states, **layers)


class NextSentence(SequenceClassifier):
    """Scores of two texts for following each other, and for not doing so (Devlin et al. 2019, section 3.1)."""

    activates: ClassVar[bool] = False


class MultipleChoice(SequenceClassifier):
    """One score per choice: every choice is a separate text, and its score is the only class of a classifier.

    ``input_ids``, ``attention_mask`` and ``token_type_ids`` are ``[B, C, T]``, the logits ``[B, C]``. All other outputs
    have ``B C`` rows, the choices of one question after each other.
    """

    num_labels: int = 1
    chooses: ClassVar[bool] = True
    activates: ClassVar[bool] = False
    init_shape: ClassVar[tuple[int, ...]] = (1, 2, 2)  # of ``input_ids`` for ``init``; other models take (1, 2)

    def __call__(self, *args: Any, **kwargs: Any) -> HeadOutput:
        """Logits ``[B, C]``; arguments are ``Inputs``.

        Raises:
            ValueError: if ``input_ids`` are not ``[B, C, T]``.
        """
        inputs = Inputs(*args, **kwargs)
        if len(inputs.shape) != 3:
            raise ValueError(f"the inputs of a multiple choice have the shape {inputs.shape}, expected [B, C, T]")
        B, C, T = inputs.shape
        example_ids = jnp.arange(B) if inputs.example_ids is None else inputs.example_ids

        def flat(array: Any) -> Any:
            return None if array is None else array.reshape(B * C, T, *array.shape[3:])

        inputs = inputs._replace(
            input_ids=flat(inputs.input_ids),
            inputs_embeds=flat(inputs.inputs_embeds),
            attention_mask=flat(inputs.attention_mask),
            token_type_ids=flat(inputs.token_type_ids),
            # Each choice has dropout of its own, which depends on its example.
            example_ids=jnp.ravel(example_ids[:, None] * C + jnp.arange(C)),
        )
        output = super().__call__(*inputs)
        return replace(output, logits=output.logits.reshape(B, C))


class TokenClassifier(WithBody):
    """Scores per class for every token; of an encoder-decoder like T5 only the encoder is used.

    Of one whose sides have configurations of their own, T5Gemma, the scores are those of the decoder's states.

    Attributes:
        config: of the model.
        num_labels: number of classes ``C``.
        labels: names of the classes, if they have names.
    """

    num_labels: int = 2
    labels: tuple[str, ...] = ()

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        if self.config.token_pooler:
            self.pooler = Pooler(self.config)
        self.classifier = Dense(self.config, self.num_labels, "classes")

    def __call__(self, *args: Any, **kwargs: Any) -> HeadOutput:
        """Logits ``[B, T, C]``; arguments are ``Inputs``."""
        inputs = Inputs(*args, **kwargs)
        if self.config.architecture == "encoder_decoder" and self.config.encoder is None:
            context, layers = self.body.encode_inputs(inputs)
            states = context.hidden
        else:
            states, layers = self.states(inputs)
        read = self.pooler.transform(states) if self.config.token_pooler else states
        return HeadOutput(self.classifier(self.drop(read, inputs)).astype(jnp.float32), states, **layers)


class QuestionAnswering(WithBody):
    """Start and end of the answer to a question in the text that follows it (Devlin et al. 2019, section 4.2)."""

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        if self.config.token_pooler:
            self.pooler = Pooler(self.config)
        if self.config.span_feed_forward:
            self.span_feed_forward = FeedForward(self.config)
            self.span_norm = Norm(self.config)
        self.span_classifier = Dense(self.config, 2, None)

    def __call__(self, *args: Any, **kwargs: Any) -> SpanOutput:
        """Scores of every token; arguments are ``Inputs``."""
        inputs = Inputs(*args, **kwargs)
        states, layers = self.states(inputs)
        read = self.pooler.transform(states) if self.config.token_pooler else states
        if self.config.span_feed_forward:
            read = self.span_norm(states + self.span_feed_forward(self.drop(states, inputs)))
        logits = self.span_classifier(read).astype(jnp.float32)
        return SpanOutput(logits[..., 0], logits[..., 1], **layers)
