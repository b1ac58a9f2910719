"""Text written inside of a compiled program equals that of ``generate``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.generation import GenerationConfig, generate, generate_inside, is_inside
from jaxformer.schema import UserError
from tests.models.tiny import tiny, tokens

MASK = np.array([[1] * 5, [1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])


@pytest.mark.parametrize("name", ["gpt2", "window", "mamba", "bart"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 2, "top_k": 9}],
    ids=["greedy", "beams", "draws"],
)
@pytest.mark.default_cases("draws-gpt2", "beams-bart")
def test_the_tokens_are_those_of_generate(name, options):
    starts = {"decoder_start_token_id": 2} if name == "bart" else {}
    model, params = tiny(name, eos_token_id=11, pad_token_id=0, **starts)
    ids = tokens(3, 5)
    chosen = GenerationConfig(max_new_tokens=6, **options)
    expected = generate(model, params, ids, MASK, seed=5, config=chosen).tokens

    def write(params, ids, mask, seed):
        assert is_inside(params, ids)
        return generate_inside(model, params, ids, mask, seed=seed, options=chosen)

    np.testing.assert_array_equal(jax.jit(write)(params, ids, MASK, 5), expected)
    assert expected.shape == (3 * options.get("num_return_sequences", 1), 6)
    if "do_sample" in options:
        assert not np.array_equal(jax.jit(write)(params, ids, MASK, 6), expected)


def test_what_cannot_be_is_refused():
    model, params = tiny("gpt2")  # max_length 20
    ids = jnp.ones((2, 5), int)
    assert generate_inside(model, params, ids, options=GenerationConfig(max_new_tokens=0)).shape == (2, 0)
    with pytest.raises(UserError, match=r"stop_strings are given inside of a compiled program.*stop_token_ids"):
        generate_inside(model, params, ids, options=GenerationConfig(stop_strings=("a",)))
    with pytest.raises(UserError, match="has 5 tokens and max_new_tokens is 16, expected at most 20 together"):
        generate_inside(model, params, ids, options=GenerationConfig(max_new_tokens=16))
    assert not is_inside(params, ids, None)
