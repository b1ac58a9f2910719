"""The three architectures: GPT-style decoder, BERT-style encoder, T5-style encoder-decoder."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.cache import KVCache
from jaxformer.models.config import TransformerConfig
from jaxformer.models.layers import Bias, Embedding, Projection, embedding_deviation, kernel_deviation
from jaxformer.models.stack import Context, Stack


@partial(jax.tree_util.register_dataclass, data_fields=["logits", "last_hidden_state", "cache"], meta_fields=[])
@dataclass(frozen=True)
class CausalLMOutput:
    """What a decoder returns.

    Attributes:
        logits: ``[B, T, V]`` float32.
        last_hidden_state: ``[B, T, D]`` after the final norm, compute dtype.
        cache: the cache with this call's tokens, if one was passed.
    """

    logits: jax.Array
    last_hidden_state: jax.Array
    cache: KVCache | None = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["logits", "last_hidden_state", "encoder_last_hidden_state", "cache"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Seq2SeqOutput:
    """What an encoder-decoder returns.

    Attributes:
        logits: ``[B, T, V]`` float32.
        last_hidden_state: ``[B, T, D]`` of the decoder, compute dtype.
        encoder_last_hidden_state: ``[B, S, D]``.
        cache: the decoder's cache with this call's tokens, if one was passed.
    """

    logits: jax.Array
    last_hidden_state: jax.Array
    encoder_last_hidden_state: jax.Array
    cache: KVCache | None = None


@partial(jax.tree_util.register_dataclass, data_fields=["last_hidden_state"], meta_fields=[])
@dataclass(frozen=True)
class EncoderOutput:
    """What an encoder returns.

    Attributes:
        last_hidden_state: ``[B, T, D]``, compute dtype.
    """

    last_hidden_state: jax.Array


def untied_head(config: TransformerConfig) -> Projection:
    """The declaration of an output layer of its own, ``[D, V]``."""
    std = kernel_deviation(config, config.hidden_size)
    return Projection((config.hidden_size, config.vocabulary), ("embed", "vocab"), 1, False, std)


def for_head(config: TransformerConfig, hidden: jax.Array) -> jax.Array:
    """The hidden states as the output layer takes them: T5 multiplies those before a tied head by ``1/sqrt(D)``."""
    return hidden * config.hidden_size**-0.5 if config.scale_logits else hidden


class Encoder(Stack):
    """BERT-style encoder: every token sees every other one."""

    causal: bool = False

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        example_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> EncoderOutput:
        """The hidden states of every token.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 at real tokens, padding on any side; default: all real.
            token_type_ids: ``[B, T]``, which of two joined texts a token belongs to; default 0.
            position_ids: ``[B, T]``; default: counts the real tokens of each document.
            segment_ids: ``[B, T]``, document of each token in a packed row, 0 for padding.
            example_ids: ``[B]``, the numbers the rows' dropout is drawn by; default ``arange(B)``.
            deterministic: False in training: dropout is on.

        Raises:
            ValueError: if the row is longer than ``max_length``.
        """
        hidden, _ = self.hidden_states(
            input_ids, attention_mask, position_ids, segment_ids, None, example_ids, deterministic, token_type_ids
        )
        return EncoderOutput(hidden)


class Decoder(Stack):
    """GPT-style decoder with a language-model head. GPT-2 and LLaMA are two sets of defaults of its configuration."""

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        if not self.config.tie_embeddings:
            self.lm_head = untied_head(self.config)

    def head_weights(self) -> F.HeadWeights:
        """The output layer's weights, for a loss that does not build all logits."""
        if self.config.tie_embeddings:
            return self.embeddings.head()
        return F.HeadWeights(self.lm_head()["kernel"])

    def hidden_and_head(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, F.HeadWeights]:
        """What ``functional.chunked_cross_entropy`` takes: hidden states and output layer."""
        return for_head(self.config, self.hidden_states(*args, **kwargs)[0]), self.head_weights()

    def last_logits(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, KVCache | None]:
        """Logits ``[B, V]`` behind the last place of each row, and the cache; arguments as in ``__call__``."""
        hidden, cache = self.hidden_states(*args, **kwargs)
        return F.head_logits(for_head(self.config, hidden[:, -1]), self.head_weights()), cache

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: KVCache | None = None,
        example_ids: jax.Array | None = None,
        deterministic: bool = True,
        prefix_mask: jax.Array | None = None,
    ) -> CausalLMOutput:
        """Logits of the next token at every position.

        ``model.apply({"params": params}, input_ids=...)`` evaluates; for training pass ``deterministic=False`` and
        ``rngs={"dropout": key}``.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 at real tokens, padding on any side; default: all real. With a cache it is
                about these tokens alone, the cache knows about the earlier ones.
            position_ids: ``[B, T]``; default: counts the real tokens of each document, after those in the cache.
            segment_ids: ``[B, T]``, document of each token in a packed row, 0 for padding.
            cache: keys and values of earlier tokens, from ``init_cache``.
            example_ids: ``[B]``, the numbers the rows' dropout is drawn by; default ``arange(B)``.
            deterministic: False in training: dropout is on.
            prefix_mask: ``[B, T]``, 1 at tokens that all tokens of their document see (prefix language models).

        Raises:
            ValueError: if the row is longer than ``max_length`` or the cache, or a cache meets packed documents or a
                prefix.
        """
        hidden, cache = self.hidden_states(
            input_ids,
            attention_mask,
            position_ids,
            segment_ids,
            cache,
            example_ids,
            deterministic,
            prefix_mask=prefix_mask,
        )
        logits = F.head_logits(for_head(self.config, hidden), self.head_weights())
        return CausalLMOutput(logits, hidden, cache)


class EncoderDecoder(nn.Module):
    """T5- or BART-style encoder-decoder with a language-model head; both sides share the token embedding.

    Attributes:
        config: of the model.
        stacked: as in ``Stack``.
    """

    config: TransformerConfig
    stacked: bool = True

    def setup(self) -> None:
        """Declares the parts."""
        c = self.config
        self.shared = Embedding(c.vocabulary, c.token_size, ("vocab", "embed"), embedding_deviation(c))
        self.encoder = Stack(c, causal=False, own_tokens=False, stacked=self.stacked)
        self.decoder = Stack(
            c, causal=True, cross=True, num_layers=c.decoder_layers, own_tokens=False, stacked=self.stacked
        )
        if not c.tie_embeddings:
            self.lm_head = untied_head(c)
        if c.logits_bias:
            self.logits_bias = Bias(c.vocabulary, "vocab")

    def encode(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        example_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> Context:
        """The encoder's hidden states, as ``decode`` takes them; arguments as in ``__call__``."""
        hidden, _ = self.encoder.hidden_states(
            input_ids,
            attention_mask,
            position_ids,
            segment_ids,
            None,
            example_ids,
            deterministic,
            table=self.shared(),
        )
        real = None if attention_mask is None else jnp.asarray(attention_mask, bool)
        return Context(hidden, real, segment_ids)

    def decode(
        self,
        context: Context,
        decoder_input_ids: jax.Array,
        decoder_attention_mask: jax.Array | None = None,
        decoder_position_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        cache: KVCache | None = None,
        example_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, KVCache | None]:
        """The decoder's last hidden states and its new cache, from what ``encode`` returned."""
        return self.decoder.hidden_states(
            decoder_input_ids,
            decoder_attention_mask,
            decoder_position_ids,
            decoder_segment_ids,
            cache,
            example_ids,
            deterministic,
            context=context,
            table=self.shared(),
        )

    def head_weights(self) -> F.HeadWeights:
        """The output layer's weights, for a loss that does not build all logits."""
        bias = self.logits_bias() if self.config.logits_bias else None
        if self.config.tie_embeddings:
            return F.HeadWeights(self.shared(), bias, tied=True)
        return F.HeadWeights(self.lm_head()["kernel"], bias)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits ``[B, T, V]`` of the decoder's hidden states."""
        return F.head_logits(for_head(self.config, hidden), self.head_weights())

    def hidden_and_head(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, F.HeadWeights]:
        """What ``functional.chunked_cross_entropy`` takes: the decoder's hidden states and output layer."""
        return for_head(self.config, self.both(*args, **kwargs)[1]), self.head_weights()

    def shifted(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, segment_ids: jax.Array | None = None
    ) -> jax.Array:
        """``[B, T]``, what the decoder reads of a text that it does not write: start token, then all but the last.

        The start token is the configuration's ``decoder_start_token_id``, or the text's last one (mBART). Without
        either the text itself.
        """
        c = self.config
        start_id = c.decoder_start_token_id
        if c.decoder_start != "last" and start_id is None:
            return input_ids
        B, T = input_ids.shape
        if segment_ids is None:
            segment_ids = jnp.ones((B, T), int) if attention_mask is None else attention_mask.astype(int)
        real = segment_ids > 0
        if c.decoder_start == "last":
            last = T - 1 - jnp.argmax(real[:, ::-1], axis=-1)
            start = jnp.take_along_axis(input_ids, last[:, None], axis=1)
        else:
            assert start_id is not None
            start = jnp.full((B, 1), start_id)
        first = real & (segment_ids != jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0))))
        return jnp.where(first, start, jnp.pad(input_ids[:, :-1], ((0, 0), (1, 0))))

    def both(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        decoder_input_ids: jax.Array | None = None,
        decoder_attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        decoder_position_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        example_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Context, jax.Array]:
        """What the encoder gives and the decoder's last hidden states; arguments as in ``__call__``."""
        input_ids = jnp.asarray(input_ids)
        attention_mask = None if attention_mask is None else jnp.asarray(attention_mask)
        # What encoder and decoder have in common is numbered once.
        if not deterministic and example_ids is None:
            example_ids = jnp.arange(input_ids.shape[0])
        if decoder_input_ids is None:
            decoder_input_ids, decoder_attention_mask = (
                self.shifted(input_ids, attention_mask, segment_ids),
                attention_mask,
            )
            decoder_segment_ids, decoder_position_ids = segment_ids, position_ids
        context = self.encode(input_ids, attention_mask, position_ids, segment_ids, example_ids, deterministic)
        hidden, _ = self.decode(
            context,
            decoder_input_ids,
            decoder_attention_mask,
            decoder_position_ids,
            decoder_segment_ids,
            None,
            example_ids,
            deterministic,
        )
        return context, hidden

    def __call__(self, *args: Any, **kwargs: Any) -> Seq2SeqOutput:
        """Logits of the next target token at every place of ``decoder_input_ids``.

        Args:
            *args: as below, by position.
            **kwargs: ``input_ids [B, S]``, ``attention_mask [B, S]`` (1 at real tokens, padding on any side),
                ``decoder_input_ids [B, T]`` (default: ``shifted``, as a classifier reads the text),
                ``decoder_attention_mask [B, T]``, ``position_ids``, ``segment_ids``, ``decoder_position_ids``,
                ``decoder_segment_ids`` (a target token of document i sees the source tokens of document i),
                ``example_ids [B]`` and ``deterministic`` as in ``Decoder``. For step-by-step decoding call the methods
                ``encode`` and ``decode``.

        Raises:
            ValueError: if a row is longer than ``max_length``.
        """
        context, hidden = self.both(*args, **kwargs)
        return Seq2SeqOutput(self.logits(hidden), hidden, context.hidden)


BODIES: dict[str, type[nn.Module]] = {"encoder": Encoder, "decoder": Decoder, "encoder_decoder": EncoderDecoder}
