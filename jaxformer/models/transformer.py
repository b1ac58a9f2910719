"""The three architectures: GPT-style decoder, BERT-style encoder, T5-style encoder-decoder."""

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig
from jaxformer.models.dense import Dense, MLMHead
from jaxformer.models.inputs import Inputs
from jaxformer.models.kv_cache import KVCache
from jaxformer.models.layers import Embedding, Vector, embedding_deviation, output_layer, untied_head
from jaxformer.models.outputs import CausalLMOutput, EncoderOutput, Layers, Seq2SeqOutput
from jaxformer.models.stack import Context, Stack, StackOutput


class Encoder(Stack):
    """BERT-style encoder: every token sees every other one."""

    causal: bool = False

    def __call__(
        self, input_ids: jax.Array | None = None, attention_mask: jax.Array | None = None, **inputs: Any
    ) -> EncoderOutput:
        """The hidden states of every token.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 at real tokens, padding on any side; default: all real.
            **inputs: ``inputs_embeds`` instead of ids, ``token_type_ids``, ``position_ids``, ``segment_ids``,
                ``example_ids``, ``deterministic``, ``output_attentions``, ``output_hidden_states``; see ``Inputs``.

        Raises:
            ValueError: if the row is longer than ``max_length``.
        """
        hidden, _, layers = self.hidden_states(Inputs(input_ids, attention_mask, **inputs))
        return EncoderOutput(hidden, **layers)


class Decoder(Stack):
    """GPT-style decoder with a language-model head. GPT-2 and LLaMA are two sets of defaults of its configuration."""

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        c = self.config
        if not c.tie_embeddings:
            self.lm_head = untied_head(c, c.token_size if c.has_head_transform else c.hidden_size)
        if c.has_head_transform:
            self.mlm_head = MLMHead(c)
        elif c.logits_bias:
            self.logits_bias = Vector(c.vocabulary, "vocab")

    def for_head(self, hidden: jax.Array) -> jax.Array:
        """The hidden states as the output layer takes them."""
        return self.mlm_head.states(hidden) if self.config.has_head_transform else _scaled(self.config, hidden)

    def head_weights(self) -> F.HeadWeights:
        """The output layer's weights, for a loss that does not build all logits."""
        c = self.config
        bias = self.mlm_head.bias if c.has_head_transform else self.logits_bias() if c.logits_bias else None
        return output_layer(c, self.embeddings.token() if c.tie_embeddings else self.lm_head()["kernel"], bias)

    def hidden_and_head(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, F.HeadWeights]:
        """Hidden states and output layer, as ``functional.chunked_cross_entropy`` takes them."""
        return self.for_head(self.hidden_states(Inputs(*args, **kwargs)).hidden), self.head_weights()

    def last_logits(self, *args: Any, last: jax.Array | None = None, **kwargs: Any) -> tuple[jax.Array, KVCache | None]:
        """Logits ``[B, V]`` after the place ``last [B]`` of each row, and the cache; arguments as in ``__call__``.

        By default ``last`` is the row's end.
        """
        hidden, cache, _ = self.hidden_states(Inputs(*args, **kwargs))
        of_last = hidden[:, -1] if last is None else jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
        return F.head_logits(self.for_head(of_last), self.head_weights()), cache

    def __call__(
        self, input_ids: jax.Array | None = None, attention_mask: jax.Array | None = None, **inputs: Any
    ) -> CausalLMOutput:
        """Logits of the next token at every position.

        ``model.apply({"params": params}, input_ids=...)`` evaluates; for training pass ``deterministic=False`` and
        ``rngs={"dropout": key}``.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 at real tokens, padding on any side; default: all real.
            **inputs: ``inputs_embeds`` instead of ids, ``position_ids``, ``segment_ids``, ``cache``, ``prefix_mask``,
                ``example_ids``, ``deterministic``, ``output_attentions``, ``output_hidden_states``; see ``Inputs``.

        Raises:
            ValueError: if the row is longer than ``max_length`` or the cache, or a cache is combined with packed
                documents, a prefix or ``output_attentions``.
        """
        hidden, cache, layers = self.hidden_states(Inputs(input_ids, attention_mask, **inputs))
        logits = F.head_logits(self.for_head(hidden), self.head_weights())
        return CausalLMOutput(logits, hidden, cache, **layers)


def _scaled(config: TransformerConfig, hidden: jax.Array) -> jax.Array:
    """T5 multiplies the states before a tied head by ``1/sqrt(D)``."""
    return hidden * config.hidden_size**-0.5 if config.scale_logits else hidden


class BothSides(NamedTuple):
    """Output of an encoder-decoder before its head.

    Attributes:
        encoded: ``[B, S, D]``, last hidden states of the encoder, before any projection.
        hidden: ``[B, T, D]``, of the decoder.
        layers: what was asked for of every layer, by the names of ``outputs.Seq2SeqLayers``.
    """

    encoded: jax.Array
    hidden: jax.Array
    layers: dict[str, Layers]


class EncoderDecoder(nn.Module):
    """Encoder-decoder with a language-model head.

    Both sides share the token embedding and the head stands beside them, as in T5 and BART; or each side has a
    configuration and tokens of its own and the decoder its head, as in Rothe et al. 2020, "Leveraging Pre-trained
    Checkpoints for Sequence Generation Tasks". Where the encoder is of another width than the decoder reads, a linear
    layer is between them.

    Attributes:
        config: of the model.
    """

    config: TransformerConfig

    def setup(self) -> None:
        """Declares the parts."""
        c = self.config
        if c.encoder is not None:
            self.encoder = Stack(c.encoder_side, causal=False)
            self.decoder: Any = Decoder(c.decoder_side, cross=True)
            if c.projects_context:
                self.context_projection = Dense(c.decoder_side, c.decoder_side.context_width, None)
            return
        self.shared = Embedding(c.vocabulary, c.token_size, ("vocab", "embed"), embedding_deviation(c))
        self.encoder = Stack(c.encoder_side, causal=False, own_tokens=False)
        self.decoder = Stack(c.decoder_side, causal=True, cross=True, own_tokens=False)
        if not c.tie_embeddings:
            self.lm_head = untied_head(c, c.hidden_size)
        if c.logits_bias:
            self.logits_bias = Vector(c.vocabulary, "vocab")

    def encode(
        self, input_ids: jax.Array | None = None, attention_mask: jax.Array | None = None, **inputs: Any
    ) -> Context:
        """The encoder's hidden states, as ``decode`` takes them; arguments as in ``__call__``."""
        return self.encode_inputs(Inputs(input_ids, attention_mask, **inputs))[0]

    def decode(
        self, context: Context, decoder_input_ids: jax.Array | None = None, **inputs: Any
    ) -> tuple[jax.Array, KVCache | None]:
        """The decoder's last hidden states and new cache, from ``encode``'s output; arguments as in ``__call__``."""
        hidden, cache, _ = self._decode(context, Inputs(decoder_input_ids=decoder_input_ids, **inputs))
        return hidden, cache

    def encode_inputs(self, inputs: Inputs) -> tuple[Context, dict[str, Layers]]:
        """``encode`` of inputs as one value, and what was asked for of the encoder's layers."""
        hidden, _, layers = self.encoder.hidden_states(inputs.source, table=self._table())
        mask = inputs.attention_mask
        return Context(hidden, None if mask is None else jnp.asarray(mask, bool), inputs.segment_ids), layers

    def _table(self) -> Any:
        """The token embedding that both sides share; None if each has its own."""
        return self.shared() if self.config.encoder is None else None

    def _decode(self, context: Context, inputs: Inputs) -> StackOutput:
        if self.config.projects_context and context.hidden is not None:
            context = context._replace(hidden=self.context_projection(context.hidden))
        output: StackOutput = self.decoder.hidden_states(inputs.target, context, self._table())
        return output

    def head_weights(self) -> F.HeadWeights:
        """The output layer's weights, for a loss that does not build all logits."""
        c = self.config
        if c.encoder is not None:
            return cast(F.HeadWeights, self.decoder.head_weights())
        bias = self.logits_bias() if c.logits_bias else None
        return output_layer(c, self.shared() if c.tie_embeddings else self.lm_head()["kernel"], bias)

    def for_head(self, hidden: jax.Array) -> jax.Array:
        """The decoder's hidden states as the output layer takes them."""
        if self.config.encoder is not None:
            return cast(jax.Array, self.decoder.for_head(hidden))
        return _scaled(self.config, hidden)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits ``[B, T, V]`` of the decoder's hidden states."""
        return F.head_logits(self.for_head(hidden), self.head_weights())

    def hidden_and_head(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, F.HeadWeights]:
        """The decoder's hidden states and output layer, as ``functional.chunked_cross_entropy`` takes them."""
        return self.for_head(self.both(Inputs(*args, **kwargs)).hidden), self.head_weights()

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

    def both(self, inputs: Inputs) -> BothSides:
        """The encoder's and the decoder's last hidden states, and what was asked for of their layers.

        Raises:
            ValueError: if ``inputs_embeds`` are given and nothing for the decoder, whose default is made of ids.
        """
        inputs = inputs.arrays()
        # The examples are numbered once for both sides.
        inputs = inputs._replace(example_ids=inputs.dropout_ids)
        if inputs.decoder_input_ids is None and inputs.decoder_inputs_embeds is None:
            if inputs.input_ids is None:
                raise ValueError(
                    "inputs_embeds is given without decoder_input_ids or decoder_inputs_embeds, expected one of them: "
                    "the decoder's own input is made of input_ids"
                )
            inputs = inputs._replace(
                decoder_input_ids=self.shifted(inputs),
                decoder_attention_mask=inputs.attention_mask,
                decoder_position_ids=inputs.position_ids,
                decoder_segment_ids=inputs.segment_ids,
            )
        context, of_encoder = self.encode_inputs(inputs)
        hidden, _, of_decoder = self._decode(context, inputs)
        layers = {f"encoder_{name}": arrays for name, arrays in of_encoder.items()}
        for name, arrays in of_decoder.items():
            layers[name if name == "cross_attentions" else f"decoder_{name}"] = arrays
        return BothSides(context.hidden, hidden, layers)

    def __call__(
        self,
        input_ids: jax.Array | None = None,
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
            **inputs: ``inputs_embeds`` and ``decoder_inputs_embeds`` instead of ids, ``decoder_attention_mask [B, T]``,
                ``position_ids``, ``segment_ids``, ``decoder_position_ids``, ``decoder_segment_ids``, ``example_ids``,
                ``deterministic``, ``output_attentions``, ``output_hidden_states``; see ``Inputs``.

        Raises:
            ValueError: if a row is longer than ``max_length``, or ``inputs_embeds`` are given and nothing for the
                decoder.
        """
        inputs["decoder_input_ids"] = decoder_input_ids
        encoded, hidden, layers = self.both(Inputs(input_ids, attention_mask, **inputs))
        return Seq2SeqOutput(self.logits(hidden), hidden, encoded, None, **layers)


BODIES: dict[str, type[nn.Module]] = {"encoder": Encoder, "decoder": Decoder, "encoder_decoder": EncoderDecoder}
