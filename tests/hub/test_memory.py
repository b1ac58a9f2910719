"""Parameters are in memory once: what a checkpoint is read into, JAX takes over without a copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.families.checkpoint import ALIGNMENT, aligned_empty
from jaxformer.hub import kinds
from jaxformer.models.config import TransformerConfig


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (0, 4), (300, 1000)])
def test_jax_takes_an_aligned_array_over(shape, dtype):
    array = aligned_empty(shape, dtype)
    assert (array.shape, array.dtype) == (shape, jnp.dtype(dtype))
    if array.size:
        assert array.ctypes.data % ALIGNMENT == 0
    array[...] = 3
    taken = jax.device_put(array)
    if array.nbytes >= ALIGNMENT:
        assert taken.unsafe_buffer_pointer() == array.ctypes.data
    np.testing.assert_array_equal(taken, array)


def test_a_step_may_donate_what_was_taken_over():
    array = aligned_empty((64, 64), np.float32)
    array[...] = 1
    taken = jax.device_put(array)
    step = jax.jit(lambda value: value + 1, donate_argnums=0)
    result = step(step(taken))
    assert taken.is_deleted()
    np.testing.assert_array_equal(result, np.full((64, 64), 3))


@pytest.mark.slow
def test_shapes_of_parameters_compile_nothing(caplog):
    model = kinds.build(TransformerConfig(vocab_size=11, hidden_size=8, num_layers=2, num_heads=2), "causal_lm")
    jax.clear_caches()
    with jax.log_compiles():
        assert kinds.abstract_params(model)
        assert "Finished XLA compilation" not in caplog.text
        jnp.zeros((1, 2), jnp.int32)  # what it would say
        assert "Finished XLA compilation" in caplog.text
