"""The outputs of the models, with the names they have in ``transformers``."""

from dataclasses import dataclass

import jax

from jaxformer.models.kv_cache import KVCache

# One array a layer.
Layers = tuple[jax.Array, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class StackLayers:
    """What happened inside a decoder or an encoder; None where it was not asked for.

    Attributes:
        hidden_states: with ``output_hidden_states`` the residual stream, ``L + 1`` arrays ``[B, T, D]`` in the compute
            dtype: the embedding, then the output of each block; last ``last_hidden_state``, after the final norm
            (CLIP's is before it, as in ``transformers``).
        attentions: with ``output_attentions`` the attention weights of each block, ``L`` arrays ``[B, N, T, T]``
            float32. The row of a query sums to 1 over the keys (last axis), or is 0 where it may see none; in training
            weights are dropped from it.
    """

    hidden_states: Layers | None = None
    attentions: Layers | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Seq2SeqLayers:
    """What happened inside an encoder-decoder, as in ``StackLayers``; None where it was not asked for.

    Attributes:
        encoder_hidden_states: ``L + 1`` arrays ``[B, S, D]``.
        encoder_attentions: ``L`` arrays ``[B, N, S, S]``.
        decoder_hidden_states: ``L + 1`` arrays ``[B, T, D]``.
        decoder_attentions: ``L`` arrays ``[B, N, T, T]``, of the target to itself.
        cross_attentions: ``L`` arrays ``[B, N, T, S]``, of the target to the source.
    """

    encoder_hidden_states: Layers | None = None
    encoder_attentions: Layers | None = None
    decoder_hidden_states: Layers | None = None
    decoder_attentions: Layers | None = None
    cross_attentions: Layers | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CausalLMOutput(StackLayers):
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
class EncoderOutput(StackLayers):
    """Output of an encoder: ``last_hidden_state [B, T, D]``, compute dtype."""

    last_hidden_state: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskedLMOutput(StackLayers):
    """Output of a masked language model.

    Attributes:
        logits: ``[B, T, V]`` float32.
        pair_logits: ``[B, 2]`` of the sentence pair head, None without one.
        last_hidden_state: ``[B, T, D]`` of the body.
    """

    logits: jax.Array
    pair_logits: jax.Array | None
    last_hidden_state: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seq2SeqOutput(Seq2SeqLayers):
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
class HeadOutput(StackLayers, Seq2SeqLayers):
    """Output of a classifier.

    Attributes:
        logits: ``[B, C]``, or ``[B, T, C]`` for every token; float32.
        last_hidden_state: ``[B, T, D]`` of the body.
    """

    logits: jax.Array
    last_hidden_state: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BodyOutput(StackLayers, Seq2SeqLayers):
    """Output of a backbone.

    Attributes:
        last_hidden_state: ``[B, T, D]``, an encoder-decoder's of the decoder.
        pooler_output: ``[B, D]``, None without a pooler.
        encoder_last_hidden_state: ``[B, S, D]`` of an encoder-decoder, else None.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None = None
    encoder_last_hidden_state: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TextEmbedding(StackLayers):
    """Output of CLIP's text encoder.

    Attributes:
        text_embeds: ``[B, P]`` float32, the embedding of each text.
        last_hidden_state: ``[B, T, D]``.
    """

    text_embeds: jax.Array
    last_hidden_state: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EmbeddingOutput(StackLayers, Seq2SeqLayers):
    """Output of a sentence encoder.

    Attributes:
        embedding: ``[B, E]`` float32.
        last_hidden_state: ``[B, T, D]`` of the body, an encoder-decoder's of the encoder.
    """

    embedding: jax.Array
    last_hidden_state: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SpanOutput(StackLayers, Seq2SeqLayers):
    """Scores ``[B, T]`` float32 of each token as the first and as the last of the answer."""

    start_logits: jax.Array
    end_logits: jax.Array
