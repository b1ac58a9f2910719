import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F
from jaxformer.families import build_model
from jaxformer.models import Inputs, TransformerConfig
from jaxformer.models.layers import Embeddings, Norm, Projection, embedding_deviation, kernel_deviation
from tests.models.tiny import CONFIGS, config_of

KEY = jax.random.key(0)


def test_projection_declares_kernel_and_bias():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self):
            return Projection((100, 3, 50), ("embed", "heads", "head"), True, 0.1, name="query")()

    variables = Outer().init(KEY)
    kernel, bias = (variables["params"]["query"][name] for name in ("kernel", "bias"))
    assert (kernel.names, bias.names) == (("embed", "heads", "head"), ("heads", "head"))
    assert (kernel.value.shape, bias.value.shape) == ((100, 3, 50), (3, 50))
    np.testing.assert_array_equal(bias.value, 0)
    # 15,000 draws: the standard deviation is known to 0.6 %, the mean to 0.0008.
    np.testing.assert_allclose(np.std(kernel.value), 0.1, rtol=0.03)
    np.testing.assert_allclose(np.mean(kernel.value), 0, atol=0.004)
    weights = Outer().apply(variables)
    np.testing.assert_array_equal(weights["kernel"].kernel, kernel.value)


def test_projection_without_bias():
    projection = Projection((4, 6), ("embed", "mlp"), False, 0.1)
    assert set(projection.init(KEY)["params"]) == {"kernel"}


def test_initial_deviations_by_hand():
    # Two sublayers a block write to the stream: the variances of 2L equal terms add up to one.
    config = config_of("gpt2", num_layers=8, initializer_range=0.04)
    assert (kernel_deviation(config, 64), kernel_deviation(config, 64, to_residual=True)) == (0.04, 0.01)
    # A norm follows the sum of a post-norm block, so nothing adds up.
    post = config_of("post_norm", num_layers=8, initializer_range=0.04)
    assert kernel_deviation(post, 64, to_residual=True) == 0.04
    fan_in = config_of("gpt2", initializer="fan_in", hidden_size=144)
    assert kernel_deviation(fan_in, 64) == kernel_deviation(fan_in, 64, to_residual=True) == 0.125
    scaled = fan_in.model_copy(update={"scale_embedding": True})
    assert (embedding_deviation(config), embedding_deviation(fan_in)) == (0.04, 1.0)
    assert embedding_deviation(scaled) == 1 / 12


@pytest.mark.parametrize(
    ("switches", "parameters"),
    [
        ({}, {"scale", "bias"}),
        ({"use_bias": False}, {"scale"}),
        ({"norm": "rms_norm"}, {"scale"}),
    ],
    ids=["layer norm", "no bias", "rms norm"],
)
def test_norm_is_the_function_the_configuration_names(switches, parameters):
    config = config_of("gpt2", norm_epsilon=0.1, **switches)
    x = jnp.arange(18.0).reshape(1, 1, 18)
    params = {name: jnp.arange(18.0) / (9 if name == "scale" else 5) for name in parameters}
    module = Norm(config)
    assert set(module.init(KEY, x)["params"]) == parameters
    y = module.apply({"params": params}, x)
    if config.norm == "rms_norm":
        np.testing.assert_array_equal(y, F.rms_norm(x, params["scale"], epsilon=0.1))
    else:
        np.testing.assert_array_equal(y, F.layer_norm(x, params["scale"], params.get("bias"), epsilon=0.1))


def embed(positions, ids, position_ids, real=None, **switches):
    config = config_of("gpt2", positions=positions, vocab_size=3, hidden_size=2, num_heads=1, max_length=4, **switches)
    tables = {"token": {"embedding": jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])}}
    if positions == "learned":
        tables["position"] = {"embedding": jnp.array([[0.0, 0.5], [10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])}
    inputs = Inputs(jnp.array(ids), real, position_ids=jnp.array(position_ids))
    return Embeddings(config).apply({"params": tables}, inputs)


def test_embeddings_by_hand():
    ids, position_ids = [[2, 0]], [[0, 3]]
    np.testing.assert_array_equal(embed("learned", ids, position_ids), [[[5, 6.5], [51, 62]]])
    np.testing.assert_array_equal(embed("none", ids, position_ids), [[[5, 6], [1, 2]]])
    np.testing.assert_array_equal(embed("rotary", ids, position_ids), [[[5, 6], [1, 2]]])
    expected = [[[5 + 0, 6 + 1], [1 + math.sin(3), 2 + math.cos(3)]]]
    np.testing.assert_allclose(embed("sinusoidal", ids, position_ids), expected, rtol=1e-6)


def test_padding_embeds_to_zeros_whatever_it_holds():
    real = jnp.array([[True, False]])
    np.testing.assert_array_equal(embed("learned", [[2, 99]], [[0, 99]], real), [[[5, 6.5], [0, 0]]])


def test_embeddings_are_cast_to_the_compute_dtype():
    assert embed("learned", [[1]], [[0]], dtype="bfloat16").dtype == jnp.bfloat16


@pytest.mark.parametrize("name", CONFIGS)
def test_every_axis_of_every_parameter_has_a_name(name):
    model = build_model(config_of(name))
    boxed = jax.eval_shape(model.init, KEY, jnp.zeros((1, 2), jnp.int32))["params"]
    specs, shapes = nn.get_partition_spec(boxed), nn.unbox(boxed)
    known = {"embed", "heads", "kv_heads", "head", "mlp", "vocab", "position", "layers", "experts"}

    def check(path, shape, spec):
        where = jax.tree_util.keystr(path)
        assert len(spec) == len(shape.shape), where
        # What a router or a mixer makes of a token has no name of its own.
        unnamed = None if "router" in where or "mixer" in where else ""
        named = [axis for axis in spec if axis != unnamed]
        assert set(named) <= known and len(set(named)) == len(named), where
        # The names tell the sizes: a swapped pair would show.
        c = model.config
        sizes = {
            "embed": c.hidden_size,
            "heads": c.num_heads,
            "kv_heads": c.kv_heads,
            "head": c.head_width,
            "mlp": c.inner_size,
            "vocab": c.vocab_size,
            "position": c.max_length + c.first_position,
            "layers": c.num_layers,
            "experts": c.num_experts,
        }
        if c.qk_norm == "width" and shape.shape[-1] != c.head_width and "_norm" in where:
            sizes |= {"heads": c.num_heads * c.head_width, "kv_heads": c.kv_heads * c.head_width}
        assert all(axis is None or sizes[axis] == size for axis, size in zip(spec, shape.shape, strict=True)), where

    jax.tree_util.tree_map_with_path(check, shapes, specs)


def test_initial_weights():
    model = build_model(config_of("gpt2", hidden_size=60, intermediate_size=80, num_layers=2, initializer_range=0.05))
    params = nn.unbox(jax.jit(model.init)(KEY, jnp.zeros((1, 2), jnp.int32)))["params"]
    layers = params["layers"]
    for kernel, expected in (
        (params["embeddings"]["token"]["embedding"], 0.05),
        (layers["attention"]["query"]["kernel"], 0.05),
        (layers["feed_forward"]["up"]["kernel"], 0.05),
        (layers["attention"]["output"]["kernel"], 0.05 / 2),  # 1/sqrt(2L), L = 2
        (layers["feed_forward"]["down"]["kernel"], 0.05 / 2),
    ):
        np.testing.assert_allclose(np.std(kernel), expected, rtol=0.1)
        assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(layers["attention_norm"]["scale"], 1)
    np.testing.assert_array_equal(layers["feed_forward"]["up"]["bias"], 0)
    # Layers are stacked and drawn apart from each other.
    kernel = layers["attention"]["query"]["kernel"]
    assert kernel.shape == (2, 60, 3, 20) and abs(np.corrcoef(kernel[0].ravel(), kernel[1].ravel())[0, 1]) < 0.1


def test_ids_outside_a_table_are_refused():
    model = build_model(TransformerConfig(vocab_size=5, hidden_size=8, num_layers=1, num_heads=2, max_length=4))
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    for ids in ([[1, 5]], [[-1, 2]]):
        with pytest.raises(ValueError, match=r"input_ids has (5|-1), expected 0 to 4: the table has 5 rows"):
            model.apply(params, jnp.array(ids))
    with pytest.raises(ValueError, match="position_ids has 4, expected 0 to 3: the table has 4 rows"):
        model.apply(params, jnp.array([[1, 2]]), position_ids=jnp.array([[0, 4]]))
    padded = model.apply(params, jnp.array([[1, 9]]), jnp.array([[1, 0]])).logits[0, 0]
    np.testing.assert_allclose(padded, model.apply(params, jnp.array([[1]])).logits[0, 0], rtol=1e-5)
