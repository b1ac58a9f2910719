"""The loop: against the full forward pass, step by step; who depends on what; what ends a row; what is refused."""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxformer
from jaxformer.generation import decode, generate, prepare, stream
from jaxformer.models import init_cache
from jaxformer.models.kv_cache import extend_cache
from jaxformer.schema import UserError
from tests.generation.letters import Letters
from tests.models.tiny import V, tiny, tokens

FREE = {"eos_token_id": ()}


def padded(rows, width, side):
    ids, mask = np.full((len(rows), width), 7), np.zeros((len(rows), width), int)
    for i, row in enumerate(rows):
        where = slice(width - len(row), None) if side == "left" else slice(None, len(row))
        ids[i, where], mask[i, where] = row, 1
    return ids, mask


@functools.cache
def forward(model):
    """Training's own forward pass, compiled once for each shape."""
    return jax.jit(lambda params, *args: jax.nn.log_softmax(model.apply({"params": params}, *args).logits))


def step_log_probs(model, params, rows, written, start=None):
    """``[B, new, V]``: log-probabilities before each written token, by one forward pass over prompt and text."""
    new = written.shape[1]
    if start is not None:  # rows are what the encoder reads
        ids, mask = padded(rows, max(map(len, rows)), "right")
        before = np.concatenate([np.full((len(rows), 1), start), written[:, :-1]], axis=1)
        return np.asarray(forward(model)(params, ids, mask, before))
    whole = [[*row, *text[:-1]] for row, text in zip(rows, written, strict=True)]
    ids, mask = padded(whole, max(map(len, whole)), "right")
    found = np.asarray(forward(model)(params, ids, mask))
    return np.stack([found[i, len(row) - 1 : len(row) - 1 + new] for i, row in enumerate(rows)])


@pytest.mark.parametrize("name", ["gpt2", "llama", "window", "alibi", "t5", "bart"])
@pytest.mark.default_cases("alibi", "llama", "t5")
def test_greedy_is_the_argmax_of_the_full_forward_pass_and_its_log_probability(name):
    start = 5 if name in ("t5", "bart") else None
    model, params = tiny(name, **({} if start is None else {"decoder_start_token_id": start}))
    rows = [np.asarray(tokens(n, seed=n)) for n in (6, 2, 4)]
    for used, side in ((prepare(model, params), "left"), (params, "right")):
        out = generate(model, used, *padded(rows, 6, side), max_new_tokens=7, **FREE)
        expected = step_log_probs(model, params, rows, out.tokens, start)
        np.testing.assert_array_equal(out.tokens, expected.argmax(axis=-1))
        chosen = np.take_along_axis(expected, out.tokens[..., None], axis=-1)[..., 0]
        np.testing.assert_allclose(out.log_probs, chosen, atol=1e-5)
    assert out.finish_reasons == ["length"] * 3 and out.lengths.tolist() == [7] * 3 and out.text is None


def test_a_ring_cache_holds_the_window_only_and_changes_nothing():
    model, params = tiny("window", max_length=60)  # a window of 3
    row = np.asarray(tokens(1, 20, seed=3))
    out = generate(model, params, row, max_new_tokens=9, **FREE)
    np.testing.assert_array_equal(out.tokens, step_log_probs(model, params, row, out.tokens).argmax(axis=-1))
    cache = init_cache(model.config, 1, 3, stacked=False, ring=True)
    _, cache = jax.eval_shape(
        lambda: model.apply({"params": prepare(model, params)}, row, cache=cache, method="last_logits")
    )
    assert cache.layers[0].key.shape[2] == cache.valid.shape[1] == 3 and not cache.empty
    with pytest.raises(ValueError, match="2 tokens are added to a ring cache, expected one at a time"):
        extend_cache(cache, None, jnp.zeros((1, 2), jnp.int32), 3)
    with pytest.raises(ValueError, match="ring is true with a cache of 2 tokens, expected at least the model's window"):
        init_cache(model.config, 1, 2, ring=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_cache_of_fewer_bits_is_near(dtype):
    model, params = tiny("llama")
    ids = tokens(4, 5, seed=1)
    exact = generate(model, params, ids, max_new_tokens=2, **FREE)
    near = generate(model, params, ids, max_new_tokens=2, cache_dtype=dtype, **FREE)
    np.testing.assert_array_equal(near.tokens[:, 0], exact.tokens[:, 0])
    difference = np.abs(near.log_probs - exact.log_probs)
    assert difference[:, 0].max() < 1e-6  # the prompt's own attention has all bits
    assert 1e-6 < difference[:, 1].max() < 0.3


def test_a_draw_depends_on_prompt_seed_and_number_alone():
    model, params = tiny("gpt2")
    params = prepare(model, params)
    ids = np.asarray(tokens(4, 3, seed=2))

    def draw(rows, seed, **options):
        options |= {"max_new_tokens": 8, "do_sample": True, "temperature": 2.0, **FREE}
        return generate(model, params, ids[rows], seed=seed, **options).tokens

    together = draw([0, 1, 2, 3], [5, 6, 7, 8])
    np.testing.assert_array_equal(draw([2, 0], [7, 5]), together[[2, 0]])
    np.testing.assert_array_equal(draw([0, 1], 1), draw([0, 1, 2, 3], 1)[:2])
    assert (draw([0, 1, 2, 3], 1) != draw([0, 1, 2, 3], 2)).any()
    several = draw([1, 3], [6, 8], num_return_sequences=3)
    np.testing.assert_array_equal(several[[0, 3]], together[[1, 3]])
    assert len({row.tobytes() for row in several}) == 6


def test_draws_follow_the_softmax_of_what_is_left():
    """Chi-square of the first token of 4,096 texts against the exact distribution, with and without filters."""
    from scipy.stats import chisquare

    model, params = tiny("gpt2")
    prompt = np.asarray(tokens(1, 3, seed=9))
    ids, mask = padded(prompt, 3, "right")
    probabilities = np.exp(np.asarray(forward(model)(params, ids, mask), np.float64)[0, -1])
    hot = probabilities**0.5 / np.sum(probabilities**0.5)
    order = np.argsort(-hot)
    top = np.where(np.isin(np.arange(V), order[:6]), hot, 0)
    nucleus = np.where(np.isin(np.arange(V), order[: np.searchsorted(np.cumsum(hot[order]), 0.7) + 1]), hot, 0)
    cases = {"plain": ({}, hot), "top-k": ({"top_k": 6}, top), "top-p": ({"top_p": 0.7}, nucleus)}
    for name, (options, expected) in cases.items():
        out = generate(
            model, params, prompt, max_new_tokens=1, do_sample=True, temperature=2.0, num_return_sequences=4096,
            seed=3, **FREE, **options,
        )  # fmt: skip
        counts = np.bincount(out.tokens[:, 0], minlength=V)
        expected = expected / expected.sum() * 4096
        assert counts[expected == 0].sum() == 0, name
        assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3, name


def test_a_row_ends_at_an_end_token_and_the_others_go_on():
    model, params = tiny("gpt2")
    ids = np.asarray(tokens(4, 3, seed=4))
    free = generate(model, params, ids, max_new_tokens=9, do_sample=True, temperature=3.0, **FREE)
    end = int(free.tokens[0, 4])
    ended = generate(
        model, params, ids, max_new_tokens=9, do_sample=True, temperature=3.0, eos_token_id=[end], pad_token_id=28
    )
    for i, row in enumerate(free.tokens):
        (places,) = np.nonzero(row == end)
        length = places[0] + 1 if len(places) else 9
        assert ended.lengths[i] == length and ended.finish_reasons[i] == ("stop" if len(places) else "length")
        np.testing.assert_array_equal(ended.tokens[i], [*row[:length], *[28] * (9 - length)])
        np.testing.assert_array_equal(ended.log_probs[i, :length], free.log_probs[i, :length])
        assert (ended.log_probs[i, length:] == 0).all()


def test_rules_hold_in_every_step():
    model, params = tiny("gpt2")
    ids = np.asarray(tokens(3, 5, seed=5))
    write = lambda **options: generate(model, params, ids, max_new_tokens=12, **FREE | options).tokens  # noqa: E731
    plain = write()
    bigrams = write(no_repeat_ngram_size=2)
    for prompt, row in zip(ids, bigrams, strict=True):
        pairs, given = list(pairwise([*prompt, *row])), list(pairwise(prompt))
        assert len(pairs) - len(set(pairs)) == len(given) - len(set(given))
    assert not np.array_equal(bigrams, plain)
    first, second = int(plain[0, 0]), int(plain[0, 1])
    words = write(bad_words_ids=[[first, second], [int(plain[1, 0])]])
    assert words[0, 0] == first and words[0, 1] != second and words[1, 0] != plain[1, 0]
    assert (write(forced_bos_token_id=3)[:, 0] == 3).all()
    forced = write(forced_eos_token_id=4)
    np.testing.assert_array_equal(forced[:, :-1], plain[:, :-1])
    assert (forced[:, -1] == 4).all()
    late = write(eos_token_id=first, min_new_tokens=4)
    assert (late[0, :4] != first).all()


def test_penalties_against_the_full_forward_pass():
    model, params = tiny("gpt2")
    prompt = np.asarray(tokens(1, 4, seed=6))
    out = generate(
        model, params, prompt, max_new_tokens=8, repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.3,
        **FREE,
    )  # fmt: skip
    whole = np.concatenate([prompt, out.tokens[:, :-1]], axis=1)
    logits, written = jax.jit(lambda: model.apply({"params": params}, whole).logits[0, 3:])(), []
    for token, row in zip(out.tokens[0], np.asarray(logits), strict=True):
        seen = np.isin(np.arange(V), [*prompt[0], *written])
        punished = np.where(seen, np.where(row > 0, row / 1.4, row * 1.4), row)
        counts = np.bincount(written, minlength=V) if written else np.zeros(V)
        assert token == np.argmax(punished - 0.5 * (counts > 0) - 0.3 * counts)
        written.append(int(token))


def test_a_mixed_workload_costs_two_programs_for_each_shape():
    """Prompts of 1 to 16 tokens and any number of new ones up to 16 share theirs; so do all temperatures."""
    model, params = tiny("gpt2", max_length=64)
    params = prepare(model, params)
    decode.start.clear_cache(), decode.advance.clear_cache()
    for length, new, temperature in ((3, 4, 0.7), (9, 12, 1.3), (16, 16, 0.2), (1, 2, 5.0)):
        ids = tokens(2, length, seed=length)
        generate(model, params, ids, max_new_tokens=new, do_sample=True, temperature=temperature, top_p=0.9, **FREE)
    assert (decode.start._cache_size(), decode.advance._cache_size()) == (1, 1)
    generate(model, params, tokens(2, 17), max_new_tokens=9, do_sample=True, temperature=0.7, top_p=0.9, **FREE)
    assert (decode.start._cache_size(), decode.advance._cache_size()) == (2, 2)


def test_tensor_parallel_writes_the_same():
    from jax.sharding import Mesh

    from jaxformer.hub.kinds import abstract_params
    from jaxformer.parallel.mesh import AXES, parameter_shardings

    model, params = tiny("llama", vocab_size=30, intermediate_size=24)  # three key/value heads, six query heads
    ids = np.asarray(tokens(3, 5, seed=7))
    one = generate(model, params, ids, max_new_tokens=6, **FREE)
    mesh = Mesh(np.array(jax.devices()[:6]).reshape(1, 2, 1, 1, 3), AXES)
    spread = jax.device_put(params, parameter_shardings(abstract_params(model), mesh))
    assert any(len({str(s.index) for s in leaf.addressable_shards}) == 6 for leaf in jax.tree.leaves(spread))
    many = generate(model, spread, ids, max_new_tokens=6, **FREE)
    np.testing.assert_array_equal(many.tokens, one.tokens)
    np.testing.assert_allclose(many.log_probs, one.log_probs, atol=1e-5)


def test_a_stop_string_across_tokens_ends_a_row():
    model, params = tiny("gpt2")
    ids, letters = np.asarray(tokens(3, 4, seed=8)), Letters()
    free = generate(model, params, ids, max_new_tokens=14, tokenizer=letters, **FREE)
    stop = free.text[1][5:8]  # three tokens
    out = generate(model, params, ids, max_new_tokens=14, tokenizer=letters, stop_strings=[stop, "#"], **FREE)
    for i, text in enumerate(free.text):
        place = text.find(stop)
        assert out.finish_reasons[i] == ("length" if place < 0 else "stop")
        assert out.text[i] == (text if place < 0 else text[:place])
        assert out.lengths[i] == (14 if place < 0 else place + 3)
    assert out.finish_reasons[1] == "stop"


@pytest.mark.parametrize("steps", [1, 4])
def test_a_stream_says_what_generate_says(steps):
    model, params = tiny("gpt2")
    ids, letters = np.asarray(tokens(3, 4, seed=8)), Letters()
    options = {"max_new_tokens": 14, "do_sample": True, "temperature": 2.0, "seed": 4, "eos_token_id": (3,)}
    whole = generate(model, params, ids, tokenizer=letters, **options)
    stop = whole.text[0][3:5]
    whole = generate(model, params, ids, tokenizer=letters, stop_strings=[stop], **options)
    texts, reasons = [""] * 3, [None] * 3
    for piece in stream(model, params, ids, tokenizer=letters, steps=steps, stop_strings=[stop], **options):
        assert reasons[piece.row] is None
        texts[piece.row] += piece.text
        reasons[piece.row] = piece.finish_reason
    assert texts == whole.text and reasons == whole.finish_reasons
    shown = []
    called = generate(model, params, ids, tokenizer=letters, stop_strings=[stop], streamer=shown.append, **options)
    np.testing.assert_array_equal(called.tokens, whole.tokens)
    assert "".join(piece.text for piece in shown if piece.row == 2) == whole.text[2]


def test_nothing_to_write():
    model, params = tiny("gpt2")
    out = generate(model, params, tokens(2, 3), max_new_tokens=0, tokenizer=Letters())
    assert out.tokens.shape == (2, 0) and out.finish_reasons == ["length"] * 2 and out.text == ["", ""]
    assert generate(model, params, np.zeros((0, 3), int), max_new_tokens=5).tokens.shape == (0, 5)
    assert [piece.finish_reason for piece in stream(model, params, tokens(1, 3), tokenizer=Letters(), max_new_tokens=0)]


def test_lists_of_different_lengths_are_what_a_mask_says_of_them():
    model, params = tiny("gpt2", bos_token_id=9)
    rows = [[4, 5, 6], [7], []]
    out = generate(model, params, rows, max_new_tokens=3, **FREE)
    by_mask = generate(model, params, *padded(rows, 3, "left"), max_new_tokens=3, **FREE)
    np.testing.assert_array_equal(out.tokens, by_mask.tokens)
    np.testing.assert_array_equal(out.log_probs, by_mask.log_probs)


def test_an_empty_prompt_begins_with_the_token_that_begins_a_text():
    model, params = tiny("gpt2", bos_token_id=9)
    out = generate(model, params, [[4, 5], [0, 0]], [[1, 1], [0, 0]], max_new_tokens=3, **FREE)
    begun = generate(model, params, [[9]], max_new_tokens=3, **FREE)
    np.testing.assert_array_equal(out.tokens[1], begun.tokens[0])


def test_it_stands_at_the_top():
    assert jaxformer.generate is generate and jaxformer.stream is stream


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        ({"input_ids": [[1] * 20]}, {}, r"prompt 0 has 20 tokens, expected fewer than 20 \(max_length\); shorten it"),
        (
            {"input_ids": [[1] * 15], "attention_mask": [[0] + [1] * 14]},
            {"max_new_tokens": 9},
            r"prompt 0 has 14 tokens and max_new_tokens is 9, expected at most 20 together .*max_new_tokens to 6 or",
        ),
        ({"input_ids": [[]]}, {}, "prompt 0 is empty and the model has no token that begins a text, expected at least"),
        (
            {"input_ids": [1, 2]},
            {},
            r"input_ids has shape \[2\].*expected whole numbers \[batch, tokens\]; put a single",
        ),
        ({"input_ids": [[1, 40]]}, {}, "input_ids holds token 40, expected ids below 29; is it this model's tokenizer"),
        ({"attention_mask": [[1]]}, {}, r"attention_mask has shape \[1, 1\], expected that of input_ids, \[1, 2\]"),
        (
            {"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1], [1, 0]]},
            {},
            "input_ids has rows of different lengths, expected lists of whole numbers and no attention_mask with them",
        ),
        ({"input_ids": [[1, 2], [3.5]]}, {}, "input_ids has rows of different lengths, expected lists of whole numb"),
        ({"input_ids": [[[1], [2, 3]]]}, {}, "input_ids has rows of different lengths, expected lists of whole numb"),
        ({}, {"temprature": 1.0}, "'temprature' is no option of generate; did you mean temperature"),
        (
            {},
            {"temperature": 0.0, "do_sample": True},
            "generate: temperature is 0 with do_sample, expected a number above it; or set do_sample to false",
        ),
        ({}, {"temperature": -1.0}, "generate: temperature: Input should be greater than or equal to 0, got -1.0"),
        ({}, {"eos_token_id": -1}, "generate: eos_token_id.0: Input should be greater than or equal to 0, got -1"),
        ({}, {"sequence_bias": [[[29], 1.0]]}, "token 29 is in sequence_bias or bad_words_ids, expected ids below 29"),
        ({}, {"stop_strings": ["x"]}, "stop_strings needs the tokenizer"),
        ({}, {"num_beams": 2, "do_sample": True}, "do_sample is true with num_beams above 1, expected one of them"),
        ({}, {"num_return_sequences": 2}, "num_return_sequences is 2 without do_sample or num_beams, expected 1"),
        ({}, {"eos_token_id": 29}, "token 29 is given to end or pad a text, expected an id below 29"),
        ({}, {"seed": [1, 2]}, r"seed has shape \[2\], expected one number or one for each of 1 prompts"),
        ({}, {"cache_dtype": "int4"}, "cache_dtype is 'int4', expected float32, bfloat16 or int8"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(call, options, message):
    model, params = tiny("gpt2")
    with pytest.raises(UserError, match=message) as error:
        generate(model, params, **{"input_ids": [[1, 2]], **call}, **{"max_new_tokens": 2, **options})
    assert "\n" not in str(error.value)


def test_a_model_that_writes_nothing_is_refused():
    model, params = tiny("bert")
    with pytest.raises(UserError, match="Encoder writes no text, expected a decoder or an encoder-decoder"):
        generate(model, params, [[1]], max_new_tokens=1)
