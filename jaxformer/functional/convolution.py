"""Convolutions over the tokens of a text.

Letters beside those of the other files: ``I`` channels, ``W`` taps of the convolution.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def token_convolution(
    x: Float[Array, "B T D"],
    taps: Float[Array, "W D E"],
    bias: Float[Array, " E"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T E"]:
    """``y[t] = sum over j of x[t + j - (W-1)/2] taps[j] + bias``, with zeros before and after the text; ``W`` is odd.

    He et al. 2021, "DeBERTa", in the models of version 2 that the code published with it trained.

    Args:
        x: the tokens, zeros at padding.
        taps: the middle one is that of the token itself.
        bias: of the outputs.
        segment_ids: document of each token of a packed row, which sees none of the others.

    Returns:
        An array of the dtype of ``x``.
    """
    T, W = x.shape[1], taps.shape[0]
    reach = W // 2
    whole = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)))
    documents = None if segment_ids is None else (segment_ids, jnp.pad(segment_ids, ((0, 0), (reach, reach))))
    y = jnp.broadcast_to(bias.astype(x.dtype), (*x.shape[:2], bias.shape[0]))
    for j in range(W):
        there = whole[:, j : j + T]
        if documents is not None:
            own = jnp.equal(documents[1][:, j : j + T], documents[0])
            there = jnp.where(own[..., None], there, 0)
        y = y + jnp.einsum("btd,de->bte", there, taps[j].astype(x.dtype), preferred_element_type=jnp.float32).astype(
            x.dtype
        )
    return y


def causal_convolution(
    x: Float[Array, "B T I"],
    taps: Float[Array, "W I"],
    bias: Float[Array, " I"] | None = None,
    *,
    tail: Float[Array, "B V I"] | None = None,
    starts: Bool[Array, "B T"] | None = None,
) -> Float[Array, "B T I"]:
    """``y[t] = sum over j of taps[W-1-j] * x[t-j] + bias``, each channel alone, with zeros before the first token.

    Gu, Dao 2023, "Mamba", section 3.4 and figure 3.

    Args:
        x: the tokens.
        taps: the last of them is that of the token itself.
        bias: of the channels.
        tail: the ``W - 1`` tokens before the first one, instead of zeros.
        starts: True at the first token of each document of a packed row, which sees none of those before it.

    Returns:
        An array like ``x``, same dtype.
    """
    T, W = x.shape[1], taps.shape[0]
    taps = taps.astype(x.dtype)
    before = jnp.zeros((x.shape[0], W - 1, x.shape[2]), x.dtype) if tail is None else tail.astype(x.dtype)
    whole = jnp.concatenate([before, x], axis=1)
    document = None if starts is None else jnp.cumsum(starts, axis=1)
    y = x * taps[-1]
    for j in range(1, W):
        earlier = whole[:, W - 1 - j : W - 1 - j + T]
        if document is not None:
            own = document == jnp.pad(document, ((0, 0), (j, 0)), mode="edge")[:, :T]
            earlier = jnp.where(own[..., None], earlier, 0)
        y = y + earlier * taps[W - 1 - j]
    return y if bias is None else y + bias.astype(x.dtype)


def convolution_tail(
    x: Float[Array, "B T I"], tail: Float[Array, "B V I"], counts: Int[Array, " B"]
) -> Float[Array, "B V I"]:
    """The last tokens of each row, as ``causal_convolution`` wants them of the next ones; in the dtype of ``tail``.

    Args:
        x: the tokens, of which the first ``counts`` of a row are real.
        tail: that before them.
        counts: number of real tokens of each row.
    """
    whole = jnp.concatenate([tail, x.astype(tail.dtype)], axis=1)
    places = counts[:, None] + jnp.arange(tail.shape[1])
    return jnp.take_along_axis(whole, places[..., None], axis=1)
