"""Pipelines of encoders whose kernels are stored and multiplied with fewer bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxformer
from jaxformer import functional as F
from jaxformer.pipelines.opened_model import open_model
from jaxformer.pipelines.weights import with_weights
from jaxformer.schema import UserError
from tests.pipelines import tiny
from tests.pipelines.cases import TEXTS

# Relative; the tiny models' kernels are large, so that rounding errors grow from block to block. A wrong scale gives 1.
NEAR = {"bfloat16": 0.25, "int8": 0.4}


@pytest.mark.parametrize("weights", NEAR)
@pytest.mark.parametrize(
    ("what", "family"), [("states", "bert"), ("states", "t5"), ("classes", "bert"), ("tags", "bert")]
)
@pytest.mark.default_cases("states-bert-*", "classes-bert-int8")
def test_results_are_near(what, family, weights, tmp_path):
    folder = tiny.save(tmp_path, what, family)
    opened = open_model(folder)
    model, params = with_weights(opened.model, opened.params, weights)
    expected_type = jnp.bfloat16 if weights == "bfloat16" else jnp.int8
    assert any(leaf.dtype == expected_type for leaf in jax.tree.leaves(params))
    ids = np.random.default_rng(0).integers(5, 40, (4, 9))
    target = {"decoder_input_ids": ids} if opened.model.config.architecture == "encoder_decoder" else {}

    def output(model, params):
        out = model.apply({"params": params}, ids, **target)
        return np.asarray(out.last_hidden_state if what == "states" else out.logits)

    whole, fewer = output(opened.model, opened.params), output(model, params)
    error = np.linalg.norm(fewer - whole) / np.linalg.norm(whole)
    assert 0 < error < NEAR[weights]
    pipes = [jaxformer.pipeline(None, folder, **given) for given in ({}, {"weights": weights})]
    if what == "states":
        one, other = (np.concatenate([np.asarray(states)[0] for states in pipe(TEXTS)]) for pipe in pipes)
        assert 0 < np.linalg.norm(one - other) / np.linalg.norm(one) < NEAR[weights]
    else:
        assert len(pipes[1](TEXTS)) == len(TEXTS)


def test_kernels_of_a_kernel_with_two_inputs_have_a_scale_for_each_output(tmp_path):
    opened = open_model(tiny.save(tmp_path, "states"))
    _, params = with_weights(opened.model, opened.params, "int8")
    kernel = opened.params["layers"]["attention"]["output"]["kernel"]  # [L, N, H, D]
    stored = params["layers"]["attention"]["output"]["packed"].kernel
    assert stored.scale.shape == (kernel.shape[0], 1, 1, kernel.shape[-1])
    for layer in range(len(kernel)):
        one = F.quantize(kernel[layer], (0, 1))
        np.testing.assert_array_equal(stored.values[layer], one.values)


def test_what_is_refused_is_one_line(tmp_path):
    folder = tiny.save(tmp_path, "classes")
    with pytest.raises(UserError, match="weights is 'int4', expected one of float32, bfloat16, int8"):
        jaxformer.pipeline(model=folder, weights="int4")
    with pytest.raises(UserError, match="weights is 'int8' and numerics is exact"):
        jaxformer.pipeline(model=folder, weights="int8", numerics="exact")
    with pytest.raises(UserError, match=r"weights were given in a call.*pipeline\(weights=\)"):
        jaxformer.pipeline(model=folder)("a text", weights="int8")
