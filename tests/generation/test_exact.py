"""Exact numerics of generation: a text and its log-probabilities whatever the batch, and those of the whole text."""

import jax
import numpy as np
import pytest

from jaxformer import functional as F
from jaxformer.generation import generate, prepare, speculative_generate
from jaxformer.schema import UserError
from tests.models import tiny

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [3, 4]]
OPTIONS = {"max_new_tokens": 8, "eos_token_id": ()}


def written(model, params, rows, **options):
    out = generate(model, params, [PROMPTS[row] for row in rows], seed=rows, **OPTIONS, **options)
    return dict(zip(rows, zip(out.tokens.tolist(), out.log_probs.tolist(), strict=True), strict=True))


@pytest.mark.parametrize("name", ["gpt2", "window", "t5"])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_p": 0.9, "temperature": 0.7}, {"num_beams": 3}])
@pytest.mark.default_cases("options1-gpt2")
def test_a_text_does_not_depend_on_its_batch(name, options):
    switches = {"decoder_start_token_id": 0} if name == "t5" else {}
    model, params = tiny.tiny(name, numerics="exact", **switches)
    together = written(model, params, [0, 1, 2, 3], **options)
    apart = {}
    for rows in ([2], [1, 0], [3]):
        apart |= written(model, params, rows, **options)
    assert together == apart


def test_log_probabilities_are_those_of_the_whole_text():
    model, params = tiny.tiny("gpt2", numerics="exact")
    out = generate(model, params, PROMPTS, do_sample=True, **OPTIONS)
    read = jax.jit(lambda ids, labels: F.exact_token_log_probs(model.apply({"params": params}, ids).logits, labels))
    for row, prompt in enumerate(PROMPTS):
        text = np.array([*prompt, *out.tokens[row]])[None]
        found = np.asarray(read(text[:, :-1], text[:, 1:]))[0, len(prompt) - 1 :]
        assert found.tobytes() == out.log_probs[row].tobytes()


def test_refuses_fewer_bits_and_gaps():
    model, params = tiny.tiny("gpt2", numerics="exact")
    with pytest.raises(UserError, match="weights is 'int8' and numerics is exact"):
        prepare(model, params, "int8")
    with pytest.raises(UserError, match="expected fast for speculative decoding"):
        speculative_generate(model, params, model, params, PROMPTS, max_new_tokens=4)
