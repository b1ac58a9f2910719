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
from jaxformer.models.stack import Stack
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


@partial(jax.tree_util.register_dataclass, data_fields=["logits", "pair_logits", "last_hidden_state"], meta_fields=[])
@dataclass(frozen=True)
class MaskedLMOutput:
    """What a masked language model returns.

    Attributes:
        logits: ``[B, T, V]`` float32.
        pair_logits: ``[B, 2]`` of the sentence pair head, None without one.
        last_hidden_state: ``[B, T, D]`` of the body.
    """

    logits: jax.Array
    pair_logits: jax.Array | None
    last_hidden_state: jax.Array


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
    """One state for the whole text: an encoder's first token, else the last real one, which has seen all others.

    Then, if the configuration names a ``pooler``, a dense layer with that activation (Devlin et al. 2019, section 3.1).
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
        """``[B, T, D]`` to ``[B, D]``."""
        c = self.config
        B, T = hidden.shape[:2]
        real = jnp.ones((B, T), bool) if attention_mask is None else attention_mask.astype(bool)
        place = jnp.argmax(real, axis=-1) if c.architecture == "encoder" else T - 1 - jnp.argmax(real[:, ::-1], axis=-1)
        pooled = jnp.take_along_axis(hidden, place[:, None, None], axis=1)[:, 0]
        if c.pooler is None:
            return pooled
        pooled = Dense(c, c.hidden_size, None, name="dense")(pooled)
        return F.ACTIVATIONS[c.pooler](pooled)


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

    def drop(self, x: jax.Array, example_ids: jax.Array | None, deterministic: bool) -> jax.Array:
        """Dropout before the head."""
        rate = self.config.dropout
        examples = jnp.arange(len(x)) if example_ids is None else example_ids
        return F.dropout(x, rate, self.head_dropout_keys(rate, None if deterministic else examples))


class MLMHead(nn.Module):
    """Dense layer to the width of the embedding, activation, norm; the tied table with a bias of its own follows."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """States ``[B, T, E]`` and the bias ``[V]`` of the output layer."""
        c = self.config
        hidden = F.ACTIVATIONS[c.activation](Dense(c, c.token_size, None, c.use_bias, name="dense")(hidden))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
        return Norm(c, name="norm")(hidden), self.param("bias", zeros, (c.vocabulary,))


def at_positions(states: jax.Array, positions: jax.Array | None) -> jax.Array:
    """The states ``[B, M, D]`` at the places ``[B, M]``, or all states."""
    return states if positions is None else jnp.take_along_axis(states, positions[..., None], axis=1)


class MaskedLM(WithBody):
    """Encoder with a masked-language-model head (Devlin et al. 2019, section 3.1).

    Attributes:
        config: of the model.
        sentence_pairs: whether a second head says how two joined texts belong together (next-sentence prediction,
            sentence-order prediction).
    """

    sentence_pairs: bool = False

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        self.mlm_head = MLMHead(self.config)
        if self.sentence_pairs:
            self.pooler = Pooler(self.config)
            self.pair_classifier = Dense(self.config, 2, None)

    def hidden_and_head(
        self, *args: Any, masked_positions: jax.Array | None = None, **kwargs: Any
    ) -> tuple[jax.Array, F.HeadWeights]:
        """What ``functional.chunked_cross_entropy`` takes; arguments as in ``__call__``.

        With ``masked_positions [B, M]`` only for the tokens at these places: the head is then computed for the tokens
        that are predicted, not for all.
        """
        return self._transformed(self.states(*args, **kwargs), masked_positions)

    def hidden_head_and_pairs(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        masked_positions: jax.Array | None = None,
        **kwargs: Any,
    ) -> tuple[jax.Array, F.HeadWeights, jax.Array]:
        """The same with ``pair_logits``; arguments as in ``__call__``."""
        states = self.states(input_ids, attention_mask, **kwargs)
        return *self._transformed(states, masked_positions), self._pairs(states, attention_mask)

    def _transformed(self, states: jax.Array, positions: jax.Array | None = None) -> tuple[jax.Array, F.HeadWeights]:
        hidden, bias = self.mlm_head(at_positions(states, positions))
        return hidden, self.body.embeddings.head()._replace(bias=bias)

    def _pairs(self, states: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
        return self.pair_classifier(self.pooler(states, attention_mask)).astype(jnp.float32)

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None, **kwargs: Any) -> MaskedLMOutput:
        """Logits of the token at every place; arguments as in ``Encoder``."""
        states = self.states(input_ids, attention_mask, **kwargs)
        hidden, head = self._transformed(states)
        pairs = self._pairs(states, attention_mask) if self.sentence_pairs else None
        return MaskedLMOutput(F.head_logits(hidden, head), pairs, states)


class SequenceClassifier(WithBody):
    """One score per class for the whole text; with ``num_labels`` 1 a regression.

    Attributes:
        config: of the model.
        num_labels: number of classes ``C``.
    """

    num_labels: int = 2

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        self.pooler = Pooler(self.config)
        self.classifier = Dense(self.config, self.num_labels, "classes", self.config.architecture != "decoder")

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        example_ids: jax.Array | None = None,
        deterministic: bool = True,
        **kwargs: Any,
    ) -> HeadOutput:
        """Logits ``[B, C]``; arguments as in ``WithBody.states``."""
        states = self.states(input_ids, attention_mask, example_ids=example_ids, deterministic=deterministic, **kwargs)
        pooled = self.drop(self.pooler(states, attention_mask), example_ids, deterministic)
        return HeadOutput(self.classifier(pooled).astype(jnp.float32), states)


class MultipleChoice(SequenceClassifier):
    """One score per choice: every choice is a text of its own, and its score the only class of a classifier.

    ``input_ids``, ``attention_mask`` and ``token_type_ids`` are ``[B, C, T]``, the logits ``[B, C]``.
    """

    num_labels: int = 1
    init_shape: ClassVar[tuple[int, ...]] = (1, 2, 2)  # what ``init`` needs of ``input_ids``; other models take (1, 2)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        example_ids: jax.Array | None = None,
        deterministic: bool = True,
        **kwargs: Any,
    ) -> HeadOutput:
        """Logits ``[B, C]``."""
        B, C = input_ids.shape[:2]
        examples = jnp.arange(B) if example_ids is None else example_ids
        output = super().__call__(
            input_ids.reshape(B * C, -1),
            None if attention_mask is None else attention_mask.reshape(B * C, -1),
            # Each choice is dropped otherwise, and as its example says.
            jnp.ravel(examples[:, None] * C + jnp.arange(C)),
            deterministic,
            **{name: array.reshape(B * C, -1) for name, array in kwargs.items()},
        )
        return HeadOutput(output.logits.reshape(B, C), output.last_hidden_state)


class TokenClassifier(WithBody):
    """Scores per class for every token; an encoder-decoder's encoder alone is used, as nothing is generated.

    Attributes:
        config: of the model.
        num_labels: number of classes ``C``.
    """

    num_labels: int = 2

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        self.classifier = Dense(self.config, self.num_labels, "classes")

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        example_ids: jax.Array | None = None,
        deterministic: bool = True,
        **kwargs: Any,
    ) -> HeadOutput:
        """Logits ``[B, T, C]``; arguments as in ``WithBody.states``."""
        if self.config.architecture == "encoder_decoder":
            kwargs.pop("token_type_ids", None)
            context = self.body.encode(
                input_ids, attention_mask, example_ids=example_ids, deterministic=deterministic, **kwargs
            )
            states = context.hidden
        else:
            states = self.states(
                input_ids, attention_mask, example_ids=example_ids, deterministic=deterministic, **kwargs
            )
        dropped = self.drop(states, example_ids, deterministic)
        return HeadOutput(self.classifier(dropped).astype(jnp.float32), states)


class QuestionAnswering(WithBody):
    """Where the answer to a question begins and ends in the text that follows it (Devlin et al. 2019, section 4.2)."""

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        self.span_classifier = Dense(self.config, 2, None)

    def __call__(self, *args: Any, **kwargs: Any) -> SpanOutput:
        """Scores of every token; arguments as in ``WithBody.states``."""
        logits = self.span_classifier(self.states(*args, **kwargs)).astype(jnp.float32)
        return SpanOutput(logits[..., 0], logits[..., 1])


class DiscriminatorHead(nn.Module):
    """Dense layer with the configuration's activation and one score per token (Clark et al. 2020, section 2)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """``[B, T, D]`` to ``[B, T]``, float32."""
        c = self.config
        hidden = F.ACTIVATIONS[c.activation](Dense(c, c.hidden_size, None, name="dense")(hidden))
        return Dense(c, 1, None, name="output")(hidden)[..., 0].astype(jnp.float32)


class Discriminator(WithBody):
    """ELECTRA: which tokens were replaced, and beside it the small generator that replaces them.

    Both read the same token table, which is the discriminator's (Clark et al. 2020, section 3.2).

    Attributes:
        config: of the discriminator.
        generator_config: of the generator; its embedding has the discriminator's width.
    """

    generator_config: TransformerConfig | None = None

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        self.rtd_head = DiscriminatorHead(self.config)
        if self.generator_config is not None:
            self.generator = Stack(self.generator_config, causal=False, own_tokens=False)
            self.generator_head = MLMHead(self.generator_config)

    def generator_hidden_and_head(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        example_ids: jax.Array | None = None,
        deterministic: bool = True,
        masked_positions: jax.Array | None = None,
    ) -> tuple[jax.Array, F.HeadWeights]:
        """The generator's states and output layer, as ``MaskedLM.hidden_and_head``."""
        head = self.body.embeddings.head()
        hidden, _ = self.generator.hidden_states(
            input_ids,
            attention_mask,
            position_ids,
            segment_ids,
            None,
            example_ids,
            deterministic,
            table=head.kernel,
        )
        hidden, bias = self.generator_head(at_positions(hidden, masked_positions))
        return hidden, head._replace(bias=bias)

    def __call__(self, *args: Any, **kwargs: Any) -> HeadOutput:
        """Logits ``[B, T]``: above 0 where a token looks replaced; arguments as in ``WithBody.states``."""
        states = self.states(*args, **kwargs)
        if self.is_initializing() and self.generator_config is not None:
            self.generator_hidden_and_head(args[0])
        return HeadOutput(self.rtd_head(states), states)
