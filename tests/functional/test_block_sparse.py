"""Block-sparse attention: the same numbers as from the whole score matrix, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F

B, N, H, SIZE = 2, 2, 4, 3


def heads(length, K=N):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=(B, length, n, H)), jnp.float32) for n in (N, K, K)]


def by_hand(query, key, value, real, chosen):
    """Float64, query by query; a key of a block that is chosen as well as seen anyway counts twice."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    T, count = query.shape[1], chosen.shape[1] + 2
    output = np.zeros(query.shape)
    for b, n, t in np.ndindex(B, N, T):
        block = t // SIZE
        blocks = list(range(count))
        if 0 < block < count - 1:
            blocks = [*sorted({0, block - 1, block, block + 1, count - 1}), *chosen[n, block - 1]]
        keys = [s for i in blocks for s in range(i * SIZE, min((i + 1) * SIZE, T)) if real[b, s]]
        group = n * key.shape[2] // N
        scores = query[b, t, n] @ key[b, keys, group].T / np.sqrt(H)
        weights = np.exp(scores - scores.max())
        output[b, t, n] = weights / weights.sum() @ value[b, keys, group]
    return output


@pytest.mark.parametrize("choice", ["random", "first"])
@pytest.mark.parametrize("K", [N, 1])
def test_every_block_sees_what_the_paper_says(choice, K):
    T, count = 26, 9
    real = np.arange(T)[None] < np.array([[T], [17]])
    chosen = F.random_blocks(N, count, 2, seed=1)
    if choice == "first":
        chosen = np.zeros_like(chosen)
    arrays = heads(T, K)
    expected = by_hand(*arrays, real, chosen)
    mask, chosen = F.Mask(key_valid=jnp.asarray(real)), jnp.asarray(chosen)

    def blocks(*arrays):
        return F.block_sparse_attention(*arrays, mask=mask, size=SIZE, chosen=chosen)

    def whole(*arrays):
        return F.dot_product_attention(*arrays, mask=mask, bias=F.sparse_bias(T, SIZE, chosen))

    np.testing.assert_allclose(blocks(*arrays), expected, atol=1e-5)
    np.testing.assert_allclose(whole(*arrays), expected, atol=1e-5)
    gradients = [jax.grad(lambda *x, f=f: jnp.sum(jnp.sin(f(*x))), (0, 1, 2))(*arrays) for f in (blocks, whole)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *gradients)
    output, weights = F.block_sparse_attention(*arrays, mask=mask, size=SIZE, chosen=chosen, return_weights=True)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)


def test_chosen_blocks_are_new_ones():
    chosen = F.random_blocks(3, 12, 4, seed=0)
    assert chosen.shape == (3, 10, 4)
    for i, row in enumerate(chosen.transpose(1, 0, 2), start=1):
        for one in row:
            assert len(set(one)) == 4 and not set(one) & {0, i - 1, i, i + 1, 11}
    assert (F.random_blocks(3, 12, 4, seed=0) == chosen).all()
    assert (F.random_blocks(3, 12, 4, seed=1) != chosen).any()


def test_a_share_of_the_weights_is_dropped():
    T = 26
    query, key, _ = heads(T)
    keys, chosen = jax.random.split(jax.random.key(0), B), jnp.zeros((N, 7, 1), jnp.int32)
    options = {"mask": F.Mask(), "size": SIZE, "chosen": chosen, "dropout_rate": 0.25, "dropout_keys": keys}
    got = np.asarray(F.block_sparse_attention(query, key, jnp.ones((B, T, N, H)), **options))
    assert abs(got.mean() - 1.0) < 0.1 and got.std() > 0.1


def test_what_does_not_fit_is_refused():
    arrays, chosen = heads(26), jnp.zeros((N, 7, 1), jnp.int32)
    with pytest.raises(ValueError, match="the mask is causal, has a window or documents, expected padding alone"):
        F.block_sparse_attention(*arrays, mask=F.Mask(causal=True), size=SIZE, chosen=chosen)
    with pytest.raises(ValueError, match=r"chosen is for \(2, 7\), expected \(2, 5\)"):
        F.block_sparse_attention(*arrays, mask=F.Mask(), size=4, chosen=chosen)
    with pytest.raises(ValueError, match="6 blocks, expected at least 7 to choose 2 from"):
        F.random_blocks(1, 6, 2, seed=0)
