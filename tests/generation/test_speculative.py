"""Speculative decoding: what is written does not depend on the small model, token by token or in distribution."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.generation import generate, speculative_generate
from jaxformer.generation.speculative import accept
from jaxformer.schema import UserError
from tests.models.tiny import random_params, tiny, tokens


def models(target="gpt2", draft="llama", **switches):
    return (*tiny(target, **switches), *tiny(draft, **switches))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.default_cases("3")
def test_greedy_search_writes_what_it_would_without(k):
    model, params, small, small_params = models(max_length=40)
    rows, mask = np.asarray(tokens(3, 6, seed=1)), np.ones((3, 6), int)
    mask[1, :3] = 0
    plain = generate(model, params, rows, mask, max_new_tokens=14, eos_token_id=4, pad_token_id=28)
    for draft in ((small, small_params), (model, params)):
        out = speculative_generate(
            model, params, *draft, rows, mask, num_draft_tokens=k, max_new_tokens=14, eos_token_id=4, pad_token_id=28
        )
        np.testing.assert_array_equal(out.tokens, plain.tokens)
        np.testing.assert_allclose(out.log_probs, plain.log_probs, atol=1e-5)
        assert out.finish_reasons == plain.finish_reasons and 0 <= out.accepted <= out.proposed
    # A small model that is the large one is right but where the last round has more than is left to write.
    assert out.rounds == -(-13 // (k + 1)) and out.accepted == out.proposed


class Words:
    """A word for each token; the blank before the first word of a text is not shown."""

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(f"w{i}" for i in ids)


def test_the_text_follows_the_prompt_as_that_of_generate():
    model, params, small, small_params = models(max_length=40)
    options = {"max_new_tokens": 5, "eos_token_id": (), "tokenizer": Words()}
    plain = generate(model, params, [[1, 2, 3]], **options)
    out = speculative_generate(model, params, small, small_params, [[1, 2, 3]], **options)
    assert out.text == plain.text and out.text[0].startswith(" w")


def test_proposals_beyond_the_last_position_harm_nothing():
    model, params, small, small_params = models()  # 20 positions
    prompt = np.asarray(tokens(2, 3, seed=2))
    plain = generate(model, params, prompt, max_new_tokens=17, eos_token_id=())
    out = speculative_generate(
        model, params, small, small_params, prompt, num_draft_tokens=6, max_new_tokens=17, eos_token_id=()
    )
    np.testing.assert_array_equal(out.tokens, plain.tokens)
    np.testing.assert_allclose(out.log_probs, plain.log_probs, atol=1e-5)


@pytest.mark.slow
def test_a_draw_has_the_large_models_distribution():
    """Chi-square of 8,192 texts of three tokens from four: kept and refused proposals are among them."""
    from scipy.stats import chisquare

    model, params, small, small_params = models(vocab_size=4)
    prompt = np.array([[1, 2, 3]])
    calm = jax.tree.map(lambda leaf: 0.5 * leaf, params)  # else one token has nearly all
    log_probs = jax.jit(lambda ids: jax.nn.log_softmax(model.apply({"params": calm}, ids).logits))
    expected, texts = [], list(itertools.product(range(4), repeat=3))
    for a, b, c in texts:
        rows = np.asarray(log_probs(np.array([[*prompt[0], a, b]])))[0]
        expected.append(np.exp(float(rows[2, a]) + float(rows[3, b]) + float(rows[4, c])))
    np.testing.assert_allclose(sum(expected), 1, atol=1e-5)
    out = speculative_generate(
        model, calm, small, small_params, np.repeat(prompt, 8192, axis=0), num_draft_tokens=2, do_sample=True,
        max_new_tokens=3, eos_token_id=(), seed=5,
    )  # fmt: skip
    assert 0.1 < out.accepted / out.proposed < 0.9
    counts = np.bincount(out.tokens @ [16, 4, 1], minlength=64)
    wanted = np.array(expected) / sum(expected) * 8192
    often = wanted >= 5
    assert often.sum() > 30
    counts, wanted = counts[often], wanted[often]
    assert chisquare(counts, wanted * counts.sum() / wanted.sum()).pvalue > 1e-3


def test_accepting_by_hand():
    """Where p is nowhere below q all is kept; a proposal that p rules out is not, and p - q says what follows."""
    q = jnp.array([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]])
    p = jnp.array([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    kept, token = accept(jnp.array([[1, 0]]), q, p, jax.random.split(jax.random.key(0), 1))
    assert kept.tolist() == [1] and token.tolist() == [2]
    kept, token = accept(jnp.array([[1, 0]]), q, p.at[0, 1].set(q[0, 1]), jax.random.split(jax.random.key(1), 1))
    assert kept.tolist() == [2] and token.tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "num_beams is no option of speculative decoding, expected one of bos_token_id, do_sample"),
        ({"num_draft_tokens": 0}, "num_draft_tokens is 0, expected at least 1"),
        ({"max_new_tokens": 18}, "prompt 0 has 3 tokens and max_new_tokens is 18, expected at most 20 together"),
    ],
)
def test_what_cannot_be_done_is_said(options, message):
    model, params, small, small_params = models()
    with pytest.raises(UserError, match=message):
        speculative_generate(model, params, small, small_params, [[1, 2, 3]], **{"max_new_tokens": 2, **options})


def test_the_vocabularies_must_be_one():
    model, params = tiny("gpt2")
    small = tiny("llama", vocab_size=31)[0]
    with pytest.raises(UserError, match="the draft model has 31 tokens and the model 29, expected the same vocabulary"):
        speculative_generate(model, params, small, random_params(small.config), [[1]], max_new_tokens=2)
    with pytest.raises(UserError, match="EncoderDecoder was given, expected a decoder"):
        speculative_generate(*tiny("t5"), small, params, [[1]])
    with pytest.raises(UserError, match="input_ids holds token 29, expected ids below 29"):
        speculative_generate(model, params, model, params, [[29]], max_new_tokens=2)
