"""The three architectures: GPT-style decoder, BERT-style encoder, T5-style encoder-decoder."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig
from jaxformer.models.inputs import Inputs
from jaxformer.models.kv_cache import KVCache
from jaxformer.models.layers import Embedding, Vector, embedding_deviation, tied_head, untied_head
from jaxformer.models.stack import Context, Stack


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CausalLMOutput:
    """Output of a decoder.

    Attributes:
        logits: ``[B, T, V]`` float32.
        last_hidden_state: ``[B, T, D]`` after the final norm, compute dtype.
        cache: the cache with this call's tokens, if one was passed.
    """

    logits: jax.Array
    last_hidden_state: jax.Array
    cache: KVCache | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seq2SeqOutput:
    """Output of an encoder-decoder.

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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EncoderOutput:
    """Output of an encoder: ``last_hidden_state [B, T, D]``, compute dtype."""

    last_hidden_state: jax.Array


def for_head(config: TransformerConfig, hidden: jax.Array) -> jax.Array:
    """The hidden states as the output layer takes them: T5 multiplies those before a tied head by ``1/sqrt(D)``."""
    return hidden * config.hidden_size**-0.5 if config.scale_logits else hidden


class Encoder(Stack):
    """BERT-style encoder: every token sees every other one."""

    causal: bool = False

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None, **inputs: Any) -> EncoderOutput:
        """The hidden states of every token.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 at real tokens, padding on any side; default: all real.
            **inputs: ``token_type_ids``, ``position_ids``, ``segment_ids``, ``example_ids``, ``deterministic``; see
                ``Inputs``.

        Raises:
            ValueError: if the row is longer than ``max_length``.
        """
        return EncoderOutput(self.hidden_states(Inputs(input_ids, attention_mask, **inputs))[0])


class Decoder(Stack):
    """GPT-style decoder with a language-model head. GPT-2 and LLaMA are two sets of defaults of its configuration."""

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        if not self.config.tie_embeddings:
            self.lm_head = untied_head(self.config, self.config.hidden_size)

    def head_weights(self) -> F.HeadWeights:
        """The output layer's weights, for a loss that does not build all logits."""
        if self.config.tie_embeddings:
            return self.embeddings.head()
        return F.HeadWeights(self.lm_head()["kernel"])

    def hidden_and_head(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, F.HeadWeights]:
        """Hidden states and output layer, as ``functional.chunked_cross_entropy`` takes them."""
        return for_head(self.config, self.hidden_states(Inputs(*args, **kwargs))[0]), self.head_weights()

    def last_logits(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, KVCache | None]:
        """Logits ``[B, V]`` after the last place of each row, and the cache; arguments as in ``__call__``."""
        hidden, cache = self.hidden_states(Inputs(*args, **kwargs))
        return F.head_logits(for_head(self.config, hidden[:, -1]), self.head_weights()), cache

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None, **inputs: Any) -> CausalLMOutput:
        """Logits of the next token at every position.

        ``model.apply({"params": params}, input_ids=...)`` evaluates; for training pass ``deterministic=False`` and
        ``rngs={"dropout": key}``.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 at real tokens, padding on any side; default: all real.
            **inputs: ``position_ids``, ``segment_ids``, ``cache``, ``prefix_mask``, ``example_ids``,
                ``deterministic``; see ``Inputs``.

        Raises:
            ValueError: if the row is longer than ``max_length`` or the cache, or a cache is combined with packed
                documents or a prefix.
        """
        hidden, cache = self.hidden_states(Inputs(input_ids, attention_mask, **inputs))
        return CausalLMOutput(F.head_logits(for_head(self.config, hidden), self.head_weights()), hidden, cache)


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
            self.lm_head = untied_head(c, c.hidden_size)
        if c.logits_bias:
            self.logits_bias = Vector(c.vocabulary, "vocab")

    def encode(self, input_ids: jax.Array, attention_mask: jax.Array | None = None, **inputs: Any) -> Context:
        """The encoder's hidden states, as ``decode`` takes them; arguments as in ``__call__``."""
        return self.encode_inputs(Inputs(input_ids, attention_mask, **inputs))

    def decode(self, context: Context, decoder_input_ids: jax.Array, **inputs: Any) -> tuple[jax.Array, KVCache | None]:
        """The decoder's last hidden states and new cache, from ``encode``'s output; arguments as in ``__call__``."""
        return self._decode(context, Inputs(None, decoder_input_ids=decoder_input_ids, **inputs))

    def encode_inputs(self, inputs: Inputs) -> Context:
        """``encode`` of inputs as one value."""
        hidden, _ = self.encoder.hidden_states(inputs.source, table=self.shared())
        mask = inputs.attention_mask
        return Context(hidden, None if mask is None else jnp.asarray(mask, bool), inputs.segment_ids)

    def _decode(self, context: Context, inputs: Inputs) -> tuple[jax.Array, KVCache | None]:
        return self.decoder.hidden_states(inputs.target, context, self.shared())

    def head_weights(self) -> F.HeadWeights:
        """The output layer's weights, for a loss that does not build all logits."""
        bias = self.logits_bias() if self.config.logits_bias else None
        if self.config.tie_embeddings:
            return tied_head(self.config, self.shared(), bias)
        return F.HeadWeights(self.lm_head()["kernel"], bias)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits ``[B, T, V]`` of the decoder's hidden states."""
        return F.head_logits(for_head(self.config, hidden), self.head_weights())

    def hidden_and_head(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, F.HeadWeights]:
        """The decoder's hidden states and output layer, as ``functional.chunked_cross_entropy`` takes them."""
        return for_head(self.config, self.both(Inputs(*args, **kwargs))[1]), self.head_weights()

    def shifted(self, inputs: Inputs) -> jax.Array:
        """``[B, T]``, a source as the decoder reads it where it writes nothing: start token, then all but the last.

        The start token is the configuration's ``decoder_start_token_id``, or the text's last one (mBART). Without
        either it is the source itself.
        """
        c, input_ids = self.config, inputs.input_ids
        if c.decoder_start != "last" and c.decoder_start_token_id is None:
            return input_ids
        B, T = input_ids.shape
        segment_ids = inputs.segment_ids
        if segment_ids is None:
            segment_ids = jnp.ones((B, T), int) if inputs.real is None else inputs.real.astype(int)
        real = segment_ids > 0
        if c.decoder_start == "last":
            last = T - 1 - jnp.argmax(real[:, ::-1], axis=-1)
            start = jnp.take_along_axis(input_ids, last[:, None], axis=1)
        else:
            start = jnp.full((B, 1), c.decoder_start_token_id or 0)
        first = real & (segment_ids != jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0))))
        return jnp.where(first, start, jnp.pad(input_ids[:, :-1], ((0, 0), (1, 0))))

    def both(self, inputs: Inputs) -> tuple[Context, jax.Array]:
        """The encoder's output and the decoder's last hidden states."""
        inputs = inputs.arrays()
        # The examples are numbered once for both sides.
        inputs = inputs._replace(example_ids=inputs.dropout_ids)
        if inputs.decoder_input_ids is None:
            inputs = inputs._replace(
                decoder_input_ids=self.shifted(inputs),
                decoder_attention_mask=inputs.attention_mask,
                decoder_position_ids=inputs.position_ids,
                decoder_segment_ids=inputs.segment_ids,
            )
        context = self.encode_inputs(inputs)
        return context, self._decode(context, inputs)[0]

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        decoder_input_ids: jax.Array | None = None,
        **inputs: Any,
    ) -> Seq2SeqOutput:
        """Logits of the next target token at every place of ``decoder_input_ids``.

        For decoding step by step call the methods ``encode`` and ``decode``.

        Args:
            input_ids: ``[B, S]``.
            attention_mask: ``[B, S]``, 1 at real tokens, padding on any side; default: all real.
            decoder_input_ids: ``[B, T]``; default: ``shifted``, as a classifier reads the text.
            **inputs: ``decoder_attention_mask [B, T]``, ``position_ids``, ``segment_ids``, ``decoder_position_ids``,
                ``decoder_segment_ids``, ``example_ids``, ``deterministic``; see ``Inputs``.

        Raises:
            ValueError: if a row is longer than ``max_length``.
        """
        inputs["decoder_input_ids"] = decoder_input_ids
        context, hidden = self.both(Inputs(input_ids, attention_mask, **inputs))
        return Seq2SeqOutput(self.logits(hidden), hidden, context.hidden)


BODIES: dict[str, type[nn.Module]] = {"encoder": Encoder, "decoder": Decoder, "encoder_decoder": EncoderDecoder}
