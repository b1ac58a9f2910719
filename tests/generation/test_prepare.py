import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F
from jaxformer.generation import generate, prepare
from jaxformer.schema import UserError
from tests.models.tiny import tiny, tokens


@pytest.mark.parametrize("name", ["gpt2", "llama", "head_norms", "alibi", "t5", "bart"])
def test_prepared_parameters_compute_the_same(name):
    model, params = tiny(name)
    ids = tokens(2, 9)
    expected = jax.jit(lambda: model.apply({"params": params}, ids).logits)()
    prepared = prepare(model, params)
    np.testing.assert_allclose(jax.jit(lambda: model.apply({"params": prepared}, ids).logits)(), expected, atol=1e-4)
    assert prepare(model, prepared) is prepared
    leaves = jax.tree.leaves(prepared, is_leaf=lambda x: isinstance(x, F.Packed))
    assert sum(isinstance(leaf, F.Packed) for leaf in leaves) > 6


def test_shared_layers_are_there_once():
    model, params = tiny("gpt2", share_layers=True)
    ids = tokens(2, 5)
    prepared = prepare(model, params)
    assert list(prepared["layers"]) == ["0"]
    logits = model.apply({"params": prepared}, ids).logits
    np.testing.assert_allclose(logits, model.apply({"params": params}, ids).logits, atol=1e-4)


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.default_cases("llama-int8", "t5-bfloat16")
def test_fewer_bits_are_what_their_rounded_weights_are(name, weights):
    """The logits of int8 or bfloat16 weights are those of a model whose float32 weights are the rounded ones."""
    model, params = tiny(name)
    ids = tokens(2, 6)

    def rounded(path, leaf):
        owner, name = (part.key for part in path[-2:])
        stacked = any(part.key == "layers" for part in path)
        table = name == "embedding" and owner in ("token", "shared")
        if weights == "bfloat16":
            return leaf.astype(jnp.bfloat16).astype(jnp.float32)
        if name == "kernel":
            outputs = 2 if owner in ("query", "key", "value") else 1
            axes = tuple(range(stacked, leaf.ndim - outputs))
            scale = np.abs(leaf).max(axis=axes, keepdims=True) / 127
            return np.round(leaf / scale) * scale
        if table:
            scale = np.abs(leaf).max(axis=1, keepdims=True) / 127
            return np.round(leaf / scale) * scale
        return leaf

    by_hand = jax.tree_util.tree_map_with_path(rounded, params)
    fewer = prepare(model, params, weights)
    whole = jax.jit(lambda ids: model.apply({"params": by_hand}, ids).logits)
    separate = jax.jit(lambda ids: model.apply({"params": fewer}, ids).logits)
    np.testing.assert_allclose(separate(ids), whole(ids), atol=2e-4)
    # One token at a time, which a CPU multiplies as whole numbers: the tokens' 16 bits are what is lost.
    one, expected_one = separate(ids[:1, :1]), whole(ids[:1, :1])
    np.testing.assert_allclose(one, expected_one, atol=2e-3 if weights == "int8" else 2e-4)
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert size(fewer) < (0.45 if weights == "int8" else 0.51) * size(params)


def test_int8_writes_nearly_the_same():
    model, params = tiny("gpt2")
    ids = tokens(4, 5)
    exact = generate(model, params, ids, max_new_tokens=1, eos_token_id=())
    fewer = generate(model, prepare(model, params, "int8"), ids, max_new_tokens=1, eos_token_id=())
    assert np.abs(fewer.log_probs - exact.log_probs)[fewer.tokens == exact.tokens].max() < 0.2
    assert (fewer.tokens == exact.tokens).sum() >= 3


def test_what_cannot_be_laid_out_is_said():
    model, params = tiny("gpt2")
    with pytest.raises(UserError, match="weights is 'int4', expected one of float32, bfloat16, int8"):
        prepare(model, params, "int4")
    with pytest.raises(
        UserError, match="the parameters are prepared already, and weights is 'int8'; prepare the original"
    ):
        prepare(model, prepare(model, params), "int8")
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    with pytest.raises(UserError, match="sharded over several devices, expected None"):
        prepare(model, spread, "int8")
