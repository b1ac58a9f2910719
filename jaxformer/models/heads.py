"""Heads: what a task puts on a body (encoder, decoder or encoder-decoder).

A head shares its parameters' level with the body: ``embeddings``, ``layers`` and so on have the same names with any
head or none, so that a body trained for one task is taken over by another name by name.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig
from jaxformer.models.layers import DropoutKeys, Norm, Projection, kernel_deviation
from jaxformer.models.transformer import BODIES


@partial(jax.tree_util.register_dataclass, data_fields=["logits", "last_hidden_state"], meta_fields=[])
@dataclass(frozen=True)
class HeadOutput:
    """What a classifier returns.

    Attributes:
        logits: ``[B, C]``, or ``[B, T, C]`` for every token; float32.
        last_hidden_state: ``[B, T, D]`` of the body.
    """

    logits: jax.Array
    last_hidden_state: jax.Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["last_hidden_state", "pooler_output", "encoder_last_hidden_state"],
    meta_fields=[],
)
@dataclass(frozen=True)
class BodyOutput:
    """What a body returns.

    Attributes:
        last_hidden_state: ``[B, T, D]``, an encoder-decoder's of the decoder.
        pooler_output: ``[B, D]``, None without a pooler.
        encoder_last_hidden_state: ``[B, S, D]`` of an encoder-decoder, else None.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None = None
    encoder_last_hidden_state: jax.Array | None = None


@partial(jax.tree_util.register_dataclass, data_fields=["start_logits", "end_logits"], meta_fields=[])
@dataclass(frozen=True)
class SpanOutput:
    """Scores ``[B, T]`` float32 of each token as the first and as the last of the answer."""

    start_logits: jax.Array
    end_logits: jax.Array


class Dense(nn.Module):
    """A linear layer with its parameters, ``[..., D]`` to ``[..., size]``."""

    config: TransformerConfig
    size: int
    axis: str | None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it."""
        width = x.shape[-1]
        std = kernel_deviation(self.config, width)
        nn.share_scope(self, projection := Projection((width, self.size), ("embed", self.axis), 1, self.use_bias, std))
        return F.linear(x, projection())


class Pooler(nn.Module):
    """One state for the whole text: its first token's, its last one's, which has seen all others, or their mean.

    Then, if the configuration names a ``pooler``, a dense layer with that activation (Devlin et al. 2019, section 3.1),
    in ModernBERT with a norm behind it.
    """

    config: TransformerConfig

    def setup(self) -> None:
        """Declares the dense layer and its norm."""
        c = self.config
        if c.pooler is not None:
            self.dense = Dense(c, c.hidden_size, None, c.use_bias if c.pooler_norm else True)
            if c.pooler_norm:
                self.norm = Norm(c)

    def __call__(self, hidden: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
        """``[B, T, D]`` to ``[B, D]``."""
        B, T = hidden.shape[:2]
        real = jnp.ones((B, T), bool) if attention_mask is None else jnp.asarray(attention_mask, bool)
        if self.config.pooled_state == "mean":
            total = jnp.sum(jnp.where(real[..., None], hidden.astype(jnp.float32), 0.0), axis=1)
            return self.transform((total / jnp.maximum(jnp.sum(real, axis=1), 1)[:, None]).astype(hidden.dtype))
        first = self.config.pooled_state == "first"
        place = jnp.argmax(real, axis=-1) if first else T - 1 - jnp.argmax(real[:, ::-1], axis=-1)
        return self.transform(jnp.take_along_axis(hidden, place[:, None, None], axis=1)[:, 0])

    def transform(self, x: jax.Array) -> jax.Array:
        """The dense layer, its activation and norm, over ``[..., D]``; nothing where there is none."""
        c = self.config
        if c.pooler is None:
            return x
        x = F.ACTIVATIONS[c.pooler](self.dense(x))
        return self.norm(x) if c.pooler_norm else x


class WithBody(nn.Module):
    """Base of the models with a head: a body whose parameters stand beside those of the head."""

    config: TransformerConfig

    def setup(self) -> None:
        """Declares the body."""
        self.body = BODIES[self.config.architecture](self.config)
        nn.share_scope(self, self.body)
        self.head_dropout_keys = DropoutKeys()

    def states(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        example_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """The body's last hidden states ``[B, T, D]``; an encoder-decoder reads the text on both sides.

        Token types are for models that have them; others ignore them.
        """
        if self.config.architecture == "encoder_decoder":
            return self.body.both(
                input_ids,
                attention_mask,
                position_ids=position_ids,
                segment_ids=segment_ids,
                example_ids=example_ids,
                deterministic=deterministic,
            )[1]
        return self.body.hidden_states(
            input_ids,
            attention_mask,
            position_ids,
            segment_ids,
            None,
            example_ids,
            deterministic,
            token_type_ids,
        )[0]

    def drop(
        self, x: jax.Array, example_ids: jax.Array | None = None, deterministic: bool = True, **_: Any
    ) -> jax.Array:
        """Dropout before the head; of the arguments of ``states`` it needs two."""
        rate = self.config.dropout
        examples = jnp.arange(len(x)) if example_ids is None else example_ids
        return F.dropout(x, rate, self.head_dropout_keys(rate, None if deterministic else examples))


class Body(WithBody):
    """A body without a head.

    Attributes:
        config: of the model.
        pooled: whether a pooler gives one state for the text, as the first encoders have been trained with.
    """

    pooled: bool = False

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        if self.pooled:
            self.pooler = Pooler(self.config)

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None, **kwargs: Any) -> BodyOutput:
        """The last hidden states; arguments as in ``WithBody.states``, an encoder-decoder's also ``decoder_...``."""
        if self.config.architecture == "encoder_decoder":
            context, hidden = self.body.both(input_ids, attention_mask, **kwargs)
            return BodyOutput(hidden, None, context.hidden)
        states = self.states(input_ids, attention_mask, **kwargs)
        return BodyOutput(states, self.pooler(states, attention_mask) if self.pooled else None)


class SequenceClassifier(WithBody):
    """One score per class for the whole text; with ``num_labels`` 1 a regression.

    Attributes:
        config: of the model.
        num_labels: number of classes ``C``.
        labels: their names, if they have some.
    """

    num_labels: int = 2
    labels: tuple[str, ...] = ()

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        self.pooler = Pooler(self.config)
        self.classifier = Dense(self.config, self.num_labels, "classes", self.config.architecture != "decoder")

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None, **kwargs: Any) -> HeadOutput:
        """Logits ``[B, C]``; arguments as in ``WithBody.states``."""
        states = self.states(input_ids, attention_mask, **kwargs)
        pooled = self.drop(self.pooler(states, attention_mask), **kwargs)
        return HeadOutput(self.classifier(pooled).astype(jnp.float32), states)


class MultipleChoice(SequenceClassifier):
    """One score per choice: every choice is a text of its own, and its score the only class of a classifier.

    ``input_ids``, ``attention_mask`` and ``token_type_ids`` are ``[B, C, T]``, the logits ``[B, C]``.
    """

    num_labels: int = 1
    init_shape: ClassVar[tuple[int, ...]] = (1, 2, 2)  # what ``init`` needs of ``input_ids``; other models take (1, 2)

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None, **kwargs: Any) -> HeadOutput:
        """Logits ``[B, C]``."""
        B, C = input_ids.shape[:2]
        kwargs = {"example_ids": jnp.arange(B), **kwargs}
        # Each choice is dropped otherwise, and as its example says.
        kwargs["example_ids"] = jnp.ravel(kwargs["example_ids"][:, None] * C + jnp.arange(C))
        if "token_type_ids" in kwargs:
            kwargs["token_type_ids"] = kwargs["token_type_ids"].reshape(B * C, -1)
        mask = None if attention_mask is None else attention_mask.reshape(B * C, -1)
        output = super().__call__(input_ids.reshape(B * C, -1), mask, **kwargs)
        return HeadOutput(output.logits.reshape(B, C), output.last_hidden_state)


class TokenClassifier(WithBody):
    """Scores per class for every token; an encoder-decoder's encoder alone is used, as nothing is generated.

    Attributes:
        config: of the model.
        num_labels: number of classes ``C``.
        labels: their names, if they have some.
    """

    num_labels: int = 2
    labels: tuple[str, ...] = ()

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        if self.config.token_pooler:
            self.pooler = Pooler(self.config)
        self.classifier = Dense(self.config, self.num_labels, "classes")

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None, **kwargs: Any) -> HeadOutput:
        """Logits ``[B, T, C]``; arguments as in ``WithBody.states``."""
        if self.config.architecture == "encoder_decoder":
            inputs = {name: value for name, value in kwargs.items() if name != "token_type_ids"}
            states = self.body.encode(input_ids, attention_mask, **inputs).hidden
        else:
            states = self.states(input_ids, attention_mask, **kwargs)
        read = self.pooler.transform(states) if self.config.token_pooler else states
        dropped = self.drop(read, **kwargs)
        return HeadOutput(self.classifier(dropped).astype(jnp.float32), states)


class QuestionAnswering(WithBody):
    """Where the answer to a question begins and ends in the text that follows it (Devlin et al. 2019, section 4.2)."""

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        if self.config.token_pooler:
            self.pooler = Pooler(self.config)
        self.span_classifier = Dense(self.config, 2, None)

    def __call__(self, *args: Any, **kwargs: Any) -> SpanOutput:
        """Scores of every token; arguments as in ``WithBody.states``."""
        states = self.states(*args, **kwargs)
        read = self.pooler.transform(states) if self.config.token_pooler else states
        logits = self.span_classifier(read).astype(jnp.float32)
        return SpanOutput(logits[..., 0], logits[..., 1])
