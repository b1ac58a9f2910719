"""The inputs of a model as one value."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Inputs(NamedTuple):
    """The inputs of a model, named as the keywords of ``model.apply``.

    Attributes:
        input_ids: ``[B, T]``; of an encoder-decoder the source, ``[B, S]``. Either these or ``inputs_embeds``.
        attention_mask: ``[B, T]``, 1 at real tokens, padding on any side; default: all real. With a cache it covers the
            new tokens only.
        token_type_ids: ``[B, T]``, which of two joined texts a token belongs to; default 0. Models without token
            types ignore it.
        position_ids: ``[B, T]``; default: counts the real tokens of each document, after those in the cache.
        segment_ids: ``[B, T]``, document of each token in a packed row, 0 for padding. In an encoder-decoder a target
            token sees the source tokens of its own document.
        prefix_mask: ``[B, T]``, 1 at tokens that all tokens of their document see (prefix language models).
        cache: keys and values of earlier tokens, from ``init_cache``.
        example_ids: ``[B]``, numbers of the rows for their dropout; default ``arange(B)``.
        deterministic: False in training: dropout is on.
        decoder_input_ids: ``[B, T]``, the target of an encoder-decoder; default: the source, shifted.
        decoder_attention_mask: ``[B, T]``, as ``attention_mask``, of the target.
        decoder_position_ids: ``[B, T]``, as ``position_ids``, of the target.
        decoder_segment_ids: ``[B, T]``, as ``segment_ids``, of the target.
        inputs_embeds: ``[B, T, E]``, instead of ``input_ids`` what the token table would give for them, times
            ``sqrt(D)`` with ``scale_embedding``; positions, types and norm follow as for ids.
        decoder_inputs_embeds: ``[B, T, E]``, the same instead of ``decoder_input_ids``. Those of Marian and PEGASUS are
            multiplied by ``sqrt(D)`` here, as in transformers.
        output_attentions: return the weights of attention, computed by ``functional.dot_product_attention``.
        output_hidden_states: return the embedding and the output of each block.
    """

    input_ids: Any = None
    attention_mask: Any = None
    token_type_ids: Any = None
    position_ids: Any = None
    segment_ids: Any = None
    prefix_mask: Any = None
    cache: Any = None
    example_ids: Any = None
    deterministic: bool = True
    decoder_input_ids: Any = None
    decoder_attention_mask: Any = None
    decoder_position_ids: Any = None
    decoder_segment_ids: Any = None
    inputs_embeds: Any = None
    decoder_inputs_embeds: Any = None
    output_attentions: bool = False
    output_hidden_states: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """``(B, T)``, for multiple choice ``(B, C, T)``.

        Raises:
            ValueError: if both or neither of ``input_ids`` and ``inputs_embeds`` are given.
        """
        ids, embeds = self.input_ids, self.inputs_embeds
        _expect_one("input_ids", ids, "inputs_embeds", embeds)
        return jnp.shape(ids) if embeds is None else jnp.shape(embeds)[:-1]

    @property
    def real(self) -> jax.Array | None:
        """``[B, T]`` bool, False at padding; None if there is none."""
        if self.attention_mask is not None:
            return jnp.asarray(self.attention_mask, bool)
        return None if self.segment_ids is None else jnp.asarray(self.segment_ids) > 0

    @property
    def dropout_ids(self) -> jax.Array | None:
        """``[B]``, numbers of the rows for their dropout; None in evaluation, where nothing is dropped."""
        if self.deterministic:
            return None
        return jnp.arange(self.shape[0]) if self.example_ids is None else self.example_ids

    @property
    def source(self) -> "Inputs":
        """The inputs of an encoder-decoder's encoder."""
        target: dict[str, Any] = {name: None for name in self._fields if name.startswith("decoder_")}
        return self._replace(cache=None, **target)

    @property
    def target(self) -> "Inputs":
        """The inputs of an encoder-decoder's decoder.

        Raises:
            ValueError: if both or neither of ``decoder_input_ids`` and ``decoder_inputs_embeds`` are given.
        """
        ids, embeds = self.decoder_input_ids, self.decoder_inputs_embeds
        _expect_one("decoder_input_ids", ids, "decoder_inputs_embeds", embeds)
        return Inputs(
            ids,
            self.decoder_attention_mask,
            position_ids=self.decoder_position_ids,
            segment_ids=self.decoder_segment_ids,
            cache=self.cache,
            example_ids=self.example_ids,
            deterministic=self.deterministic,
            inputs_embeds=embeds,
            output_attentions=self.output_attentions,
            output_hidden_states=self.output_hidden_states,
        )

    def arrays(self) -> "Inputs":
        """Converts them to JAX arrays; a tokenizer returns NumPy arrays."""
        arrays: list[Any] = [jnp.asarray(x) if hasattr(x, "__array__") or isinstance(x, list) else x for x in self]
        return Inputs(*arrays)


def _expect_one(ids_name: str, ids: Any, embeds_name: str, embeds: Any) -> None:
    if ids is None and embeds is None:
        raise ValueError(f"neither {ids_name} nor {embeds_name} is given, expected one of them")
    if ids is not None and embeds is not None:
        raise ValueError(f"{ids_name} and {embeds_name} are both given, expected one of them")
