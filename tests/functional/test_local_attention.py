"""Attention to a neighbourhood in blocks: the same numbers as from the whole score matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F

B, N, K, H = 2, 4, 2, 8


def heads(length, seed=0):
    random = np.random.default_rng(seed)
    return [jnp.asarray(random.normal(size=(B, length, n, H)), jnp.float32) for n in (N, K, K)]


MASKS = {
    "plain": {},
    "causal": {"causal": True},
    "padding": {"key_valid": jnp.array([[1] * 21 + [0] * 2, [0] * 9 + [1] * 14], bool)},
    "documents": dict.fromkeys(("query_segments", "key_segments"), jnp.array([[1] * 9 + [2] * 14, [1] * 3 + [0] * 20])),
}


@pytest.mark.parametrize("window", [1, 3, 5, 8, 11, 40])
@pytest.mark.parametrize("name", MASKS)
def test_blocks_give_what_the_whole_matrix_gives(name, window):
    mask, arrays = F.Mask(window=window, **MASKS[name]), heads(23)

    def value_and_gradient(attention):
        def loss(*arrays):
            return jnp.sum(jnp.sin(attention(*arrays, mask=mask, softcap=3.0)))

        return jax.value_and_grad(loss, (0, 1, 2))(*arrays)

    got, expected = value_and_gradient(F.local_attention), value_and_gradient(F.dot_product_attention)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, expected)


def test_a_bias_is_given_by_the_distance():
    window, arrays, table = 4, heads(23), jnp.asarray(np.random.default_rng(1).normal(size=(32, N)), jnp.float32)
    mask, layout = F.Mask(window=window), F.local_layout(23, window)
    assert (layout.size, layout.blocks, layout.keys) == (4, 6, 12)
    biases = [F.relative_bias(table, d, bidirectional=True) for d in (layout.distance(), mask.distance(23, 23))]
    got = F.local_attention(*arrays, mask=mask, bias=biases[0])
    np.testing.assert_allclose(got, F.dot_product_attention(*arrays, mask=mask, bias=biases[1]), atol=1e-5)


def by_hand(query, key, value, seen, bias):
    """Softmax attention in float64, query by query; a query that sees nothing gets zeros."""
    output = np.zeros(query.shape)
    for b, t, n in np.ndindex(*query.shape[:3]):
        keys = np.flatnonzero(seen[b, t])
        if len(keys):
            scores = query[b, t, n] @ key[b, keys, n * K // N].T / np.sqrt(H) + bias[b, n, t, keys]
            weights = np.exp(scores - scores.max())
            output[b, t, n] = weights / weights.sum() @ value[b, keys, n * K // N]
    return output


@pytest.mark.parametrize("window", [2, 4, 30])
def test_summaries_are_further_keys(window):
    T, G = 21, 3
    random = np.random.default_rng(2)
    query, key, value = heads(T)
    side = [jnp.asarray(random.normal(size=(B, G, K, H)), jnp.float32) for _ in range(2)]
    visible = random.random((B, T, G)) < 0.7
    bias = random.normal(size=(B, N, T, G)).astype(np.float32)
    valid = np.arange(T)[None] < np.array([[T], [9]])
    near = (abs(np.arange(T)[:, None] - np.arange(T)) < window) & valid[:, None]
    whole = [np.concatenate(pair, 1).astype(np.float64) for pair in zip((key, value), side, strict=True)]
    expected = by_hand(
        np.asarray(query, np.float64),
        *whole,
        np.concatenate([near, visible], -1),
        np.concatenate([np.zeros((B, N, T, T)), bias], -1),
    )
    mask, summaries = (
        F.Mask(window=window, key_valid=jnp.array(valid)),
        F.Summaries(*side, jnp.array(visible), jnp.array(bias)),
    )
    np.testing.assert_allclose(
        F.local_attention(query, key, value, mask=mask, summaries=summaries), expected, atol=1e-5
    )
    one = F.Layout(T, 1, 0, 0)
    output, weights = F.local_attention(
        query, key, value, mask=mask, summaries=summaries, layout=one, return_weights=True
    )
    np.testing.assert_allclose(output, expected, atol=1e-5)
    assert weights.shape == (B, N, T, T + G)
    something = np.any(np.concatenate([near, visible], -1), axis=-1)
    np.testing.assert_allclose(weights.sum(-1), np.broadcast_to(something[:, None], (B, N, T)), atol=1e-5)


def test_a_share_of_the_weights_is_dropped():
    T, rate = 40, 0.25
    query, key, _ = heads(T)
    ones, keys = jnp.ones((B, T, K, H)), jax.random.split(jax.random.key(0), B)
    drop = {"dropout_rate": rate, "dropout_keys": keys}
    got = np.asarray(F.local_attention(query, key, ones, mask=F.Mask(window=6), **drop))
    assert abs(got.mean() - 1.0) < 0.05 and got.std() > 0.1
    blocks = got[:, :36].reshape(B, 6, 6, N, H)
    assert not np.allclose(blocks[:, 1], blocks[:, 2])  # each block drops its own
    alone = F.local_attention(query[:1], key[:1], ones[:1], mask=F.Mask(window=6), **{**drop, "dropout_keys": keys[:1]})
    np.testing.assert_allclose(alone, got[:1], atol=1e-5)


def test_blocks_of_documents_are_numbered_through_the_row():
    blocks, documents = F.summary_blocks(jnp.array([[1] * 7 + [2] * 2 + [3] * 3 + [0] * 2, [0] * 8 + [1] * 6]), 3)
    np.testing.assert_array_equal(blocks, [[0, 0, 0, 1, 1, 1, 1, 4, 4, 2, 2, 2, 4, 4], [4] * 8 + [0] * 3 + [1] * 3])
    np.testing.assert_array_equal(documents, [[1, 1, 3, 0], [1, 1, 0, 0]])
    sums = F.block_sums(jnp.ones((2, 14, 5)), blocks, 4)
    np.testing.assert_array_equal(sums[..., 0], [[3, 4, 3, 0], [3, 3, 0, 0]])


def test_what_cannot_be_computed_in_blocks_is_refused():
    arrays = heads(23)
    with pytest.raises(ValueError, match="no window by index, expected one"):
        F.local_attention(*arrays, mask=F.Mask())
    with pytest.raises(ValueError, match="weights of 6 blocks are asked for"):
        F.local_attention(*arrays, mask=F.Mask(window=4), return_weights=True)
