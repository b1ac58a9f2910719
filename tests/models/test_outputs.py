"""Attention weights and hidden states on request, and embeddings in place of ids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F
from jaxformer.generation import prepare
from jaxformer.models import init_cache
from jaxformer.models.heads import Body, MultipleChoice, QuestionAnswering, SequenceClassifier, TokenClassifier
from jaxformer.models.masked_lm import Discriminator, MaskedLM
from jaxformer.models.outputs import Seq2SeqLayers, StackLayers
from jaxformer.models.value_head import with_value
from tests.models.tiny import config_of, random_params, tiny, tokens

ASKED = {"output_attentions": True, "output_hidden_states": True}
MASK = jnp.array([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 0]])
ENCODERS = ["bert", "albert", "modernbert"]
ENCODER_DECODERS = ["t5", "bart", "marian"]
FAMILIES = ["gpt2", "llama", "parallel", "window", "alibi", "head_norms", "post_norm", *ENCODERS, *ENCODER_DECODERS]


@functools.cache
def run(name, **switches):
    """The model, its parameters and all outputs for two rows, one of them padded."""
    model, params = tiny(name, **switches)
    return model, params, model.apply({"params": params}, tokens(2, 7), MASK, **ASKED)


def layers(output, side):
    return getattr(output, f"{side}hidden_states"), getattr(output, f"{side}attentions")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.default_cases("albert", "bart", "gpt2", "llama", "t5", "window")
def test_the_layers_of_every_stack(name):
    model, _, output = run(name)
    c = model.config
    sides = {"": (c.num_layers, "last_hidden_state")}
    if c.architecture == "encoder_decoder":
        sides = {
            "encoder_": (c.num_layers, "encoder_last_hidden_state"),
            "decoder_": (c.decoder_layers, "last_hidden_state"),
        }
    for side, (L, last) in sides.items():
        states, weights = layers(output, side)
        assert len(states) == L + 1 and len(weights) == L
        assert all(state.shape == (2, 7, 18) for state in states)
        np.testing.assert_array_equal(states[-1], getattr(output, last))
        for layer in weights:
            assert layer.shape == (2, c.num_heads, 7, 7) and layer.dtype == jnp.float32
            np.testing.assert_allclose(np.sum(layer, axis=-1)[0], 1.0, rtol=1e-6)
            seen = np.broadcast_to(np.asarray(MASK[:, None, None] > 0), layer.shape)
            assert np.all(np.asarray(layer)[~seen] == 0.0)  # padding
            if side == "decoder_" or c.architecture == "decoder":
                assert np.all(np.triu(layer, 1) == 0.0)
    if c.architecture == "encoder_decoder":
        assert len(output.cross_attentions) == c.decoder_layers
        for layer in output.cross_attentions:
            np.testing.assert_allclose(np.sum(layer, axis=-1)[0], 1.0, rtol=1e-6)
            assert np.all(np.asarray(layer)[1, :, :, [0, 1, 6]] == 0.0)


def test_a_window_and_packed_documents_are_zeros():
    model, params = tiny("window")
    segments = jnp.array([[1, 1, 1, 1, 1, 2, 2, 2]])
    output = model.apply({"params": params}, tokens(1, 8), segment_ids=segments, **ASKED)
    query, key = np.arange(8)[:, None], np.arange(8)[None]
    seen = (key <= query) & (query - key < 3) & ((query < 5) == (key < 5))
    for layer in output.attentions:
        assert np.array_equal(np.asarray(layer)[0] > 0, np.broadcast_to(seen, (3, 8, 8)))


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_what_was_not_asked_for_is_none_and_changes_nothing(name):
    model, params, asked = run(name)
    plain = model.apply({"params": params}, tokens(2, 7), MASK)
    for kind in (StackLayers, Seq2SeqLayers):
        for field in kind.__dataclass_fields__:
            assert getattr(plain, field, None) is None
    np.testing.assert_allclose(plain.last_hidden_state, asked.last_hidden_state, rtol=1e-6, atol=1e-6)
    states = model.apply({"params": params}, tokens(2, 7), MASK, output_hidden_states=True)
    np.testing.assert_array_equal(states.last_hidden_state, plain.last_hidden_state)
    attentions = "decoder_attentions" if name == "t5" else "attentions"
    assert getattr(states, attentions) is None and getattr(asked, attentions) is not None


def test_attention_of_a_layer_by_hand():
    """LLaMA's second layer, from its input and its parameters: norm, heads, rotation, scores, softmax."""
    model, params, output = run("llama", rope_scaling=None)
    c, p = model.config, jax.tree.map(lambda array: np.asarray(array[1], np.float64), params["layers"])
    x = np.asarray(output.hidden_states[1], np.float64)[0]
    x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + c.norm_epsilon) * p["attention_norm"]["scale"]
    angles = np.arange(7)[:, None] * c.rope_theta ** (-np.arange(0, 4, 2) / 4)

    def heads(name):
        head = np.einsum("td,dnh->nth", x, p["attention"][name]["kernel"])
        first, second = np.split(head, 2, axis=-1)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    keys = np.repeat(heads("key"), 2, axis=0)  # two query heads share one
    scores = np.einsum("nth,nsh->nts", heads("query"), keys) / np.sqrt(4)
    weights = np.exp(np.where(np.tri(7) > 0, scores, -np.inf))
    weights /= weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(output.attentions[1][0], weights, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "modernbert", "t5"])
@pytest.mark.parametrize("switches", [{"remat": "dots"}, {"unroll": 2}, {"attention_implementation": "reference"}])
def test_how_the_layers_run_does_not_matter(name, switches):
    (_, _, expected), (_, _, got) = run(name), run(name, **switches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)


def test_a_kernel_that_has_no_weights_is_replaced_by_the_formula():
    ids = tokens(1, 100)
    outputs = []
    for implementation in ("blocked", "reference"):
        model, params = tiny("gpt2", max_length=100, attention_implementation=implementation)
        outputs.append(model.apply({"params": params}, ids, **ASKED))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), *outputs)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_model_laid_out_for_decoding(name):
    model, params, expected = run(name)
    got = model.apply({"params": prepare(model, params)}, tokens(2, 7), MASK, **ASKED)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)
    int8 = {"params": prepare(model, params, "int8")}
    asked, plain = model.apply(int8, tokens(2, 7), MASK, **ASKED), model.apply(int8, tokens(2, 7), MASK)
    np.testing.assert_allclose(asked.last_hidden_state, plain.last_hidden_state, rtol=1e-5, atol=1e-5)
    for layer in asked.attentions if name == "gpt2" else asked.cross_attentions:
        np.testing.assert_allclose(np.sum(layer, axis=-1)[0], 1.0, rtol=1e-6)


def table_of(model, params, ids):
    """What the token table gives for ids, scaled as the model does."""
    table = params["shared" if "shared" in params else "embeddings"]
    table = table if "embedding" in table else table["token"]
    c = model.config
    return table["embedding"][ids] * (c.hidden_size**0.5 if c.scale_embedding else 1.0)


@pytest.mark.parametrize("name", ["gpt2", "gemma", "bert", "albert", "electra", "modernbert"])
def test_embeddings_in_place_of_ids_are_the_same_run(name):
    model, params, expected = run(name)
    embeds = table_of(model, params, tokens(2, 7))
    got = model.apply({"params": params}, inputs_embeds=embeds, attention_mask=MASK, **ASKED)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("name", ["t5", "mbart", "marian"])
@pytest.mark.slow
def test_embeddings_on_either_side_of_an_encoder_decoder(name):
    model, params = tiny(name)
    source, target = tokens(2, 7), tokens(2, 5, seed=1)
    apply = functools.partial(model.apply, {"params": params}, attention_mask=MASK, **ASKED)
    expected = apply(source, decoder_input_ids=target)
    sources, targets = table_of(model, params, source), table_of(model, params, target)
    if name == "marian":  # which multiplies those of the decoder itself, in transformers too
        targets = targets / model.config.hidden_size**0.5
    jax.tree.map(np.testing.assert_array_equal, apply(inputs_embeds=sources, decoder_input_ids=target), expected)
    got = apply(source, decoder_inputs_embeds=targets)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)
    context = model.apply({"params": params}, source, MASK, method="encode")
    hidden, _ = model.apply({"params": params}, context, decoder_inputs_embeds=targets, method="decode")
    np.testing.assert_allclose(hidden, expected.last_hidden_state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "bart"])
@pytest.mark.parametrize("head", [Body, SequenceClassifier, TokenClassifier, QuestionAnswering, MultipleChoice])
@pytest.mark.default_cases("MultipleChoice-bert", "SequenceClassifier-bart", "Body-*", "TokenClassifier-gpt2")
def test_every_head_passes_the_layers_of_its_body_on(architecture, head):
    config = config_of(architecture)
    model, ids, mask = head(config), tokens(2, 7), MASK
    body = random_params(config, Body(config))
    params = {name: body.get(name, value) for name, value in random_params(config, model).items()}
    expected = Body(config).apply({"params": body}, ids, mask, **ASKED)
    if head is MultipleChoice:
        ids, mask = ids[None], mask[None]
    output = model.apply({"params": params}, ids, mask, **ASKED)
    names = [*StackLayers.__dataclass_fields__, *Seq2SeqLayers.__dataclass_fields__]
    renamed = {}
    if architecture == "bart" and head is TokenClassifier:  # it uses the encoder alone
        renamed = {"hidden_states": "encoder_hidden_states", "attentions": "encoder_attentions"}
        names = names[:2]
    for name in names:
        jax.tree.map(np.testing.assert_array_equal, getattr(output, name), getattr(expected, renamed.get(name, name)))
    assert any(getattr(output, name) is not None for name in names)
    if architecture == "bart":
        return
    embeds = table_of(model, params, ids)
    again = model.apply({"params": params}, inputs_embeds=embeds, attention_mask=mask, **ASKED)
    jax.tree.map(np.testing.assert_array_equal, again, output)


def test_pre_training_heads_and_value_heads():
    config = config_of("electra")
    for model in (MaskedLM(config), Discriminator(config, generator_config=config_of("electra", num_layers=1))):
        params = random_params(config, model)
        output = model.apply({"params": params}, tokens(2, 7), MASK, **ASKED)
        assert len(output.hidden_states) == 3 and output.attentions[1].shape == (2, 3, 7, 7)
        np.testing.assert_array_equal(output.hidden_states[-1], output.last_hidden_state)
    model = with_value(config_of("gpt2"))
    params = random_params(model.config, model)
    assert len(model.apply({"params": params}, tokens(2, 7), **ASKED).attentions) == 2


def test_a_model_is_initialised_from_embeddings_too():
    model, params = tiny("gpt2")
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs_embeds=jnp.zeros((1, 2, 18))))["params"]
    assert jax.tree.structure(jax.tree.map(lambda _: 0, params)) == jax.tree.structure(
        jax.tree.map(lambda _: 0, made, is_leaf=lambda leaf: hasattr(leaf, "names"))
    )


def test_a_gradient_reaches_the_embeddings():
    model, params = tiny("gpt2")
    embeds = table_of(model, params, tokens(1, 4))
    third = jax.grad(lambda x: model.apply({"params": params}, inputs_embeds=x).logits[0, 2, 0])(embeds)
    assert np.all(np.any(np.asarray(third)[0, :3] != 0, axis=-1)) and not np.any(third[0, 3])


def test_in_training_the_weights_are_those_that_were_used():
    model, params = tiny("gpt2", attention_dropout=0.5)
    rngs = {"dropout": jax.random.key(0)}
    output = model.apply({"params": params}, tokens(2, 7), deterministic=False, rngs=rngs, **ASKED)
    plain = model.apply({"params": params}, tokens(2, 7), **ASKED)
    kept = np.asarray(output.attentions[0]) / np.where(np.tri(7) > 0, plain.attentions[0], 1.0)
    assert set(np.unique(np.round(kept, 4))) == {0.0, 2.0}


def test_weights_are_float32_and_states_in_the_compute_dtype():
    model, params = tiny("gpt2", dtype="bfloat16")
    output = model.apply({"params": params}, tokens(2, 7), **ASKED)
    assert {w.dtype for w in output.attentions} == {jnp.dtype(jnp.float32)}
    assert {s.dtype for s in output.hidden_states} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.slow
def test_exact_numerics_have_hidden_states_in_the_order_of_the_tokens():
    model, params = tiny("gpt2", numerics="exact")
    apply = functools.partial(model.apply, {"params": params})
    ids = tokens(2, 7)
    output = apply(ids, MASK, output_hidden_states=True)
    alone = apply(ids[1:, 2:6], output_hidden_states=True)
    for state, expected in zip(output.hidden_states, alone.hidden_states, strict=True):
        np.testing.assert_array_equal(state[1, 2:6], expected[0])
    np.testing.assert_array_equal(output.logits, apply(ids, MASK).logits)
    embeds = table_of(model, params, ids)
    np.testing.assert_array_equal(apply(inputs_embeds=embeds, attention_mask=MASK).logits, output.logits)


@pytest.mark.slow
def test_hidden_states_of_new_tokens_with_a_cache():
    model, params, whole = run("llama")
    ids = tokens(2, 7)
    output = model.apply({"params": params}, ids[:1, :5], cache=init_cache(model.config, 1, 7))
    output = model.apply({"params": params}, ids[:1, 5:], cache=output.cache, output_hidden_states=True)
    for state, expected in zip(output.hidden_states, whole.hidden_states, strict=True):
        np.testing.assert_allclose(state[0], expected[0, 5:], rtol=1e-5, atol=1e-5)


def refusals():
    ids, embeds = tokens(1, 4), jnp.zeros((1, 4, 18))
    both = {"input_ids": ids, "inputs_embeds": embeds}
    decoder = {"input_ids": ids, "decoder_input_ids": ids, "decoder_inputs_embeds": embeds}
    return {
        "input_ids and inputs_embeds are both given, expected one of them": ("gpt2", both),
        "neither input_ids nor inputs_embeds is given, expected one of them": ("gpt2", {}),
        r"inputs_embeds has the shape \(1, 4, 18\), expected \[B, T, 10\]": ("albert", {"inputs_embeds": embeds}),
        r"inputs_embeds has the shape \(4, 18\), expected \[B, T, 18\]": ("gpt2", {"inputs_embeds": embeds[0]}),
        r"inputs_embeds has 21 tokens a row, expected at most 20": ("gpt2", {"inputs_embeds": jnp.zeros((1, 21, 18))}),
        "decoder_inputs_embeds is given, expected None": ("gpt2", {"input_ids": ids, "decoder_inputs_embeds": embeds}),
        "decoder_input_ids and decoder_inputs_embeds are both given": ("t5", decoder),
        "inputs_embeds is given without decoder_input_ids or decoder_inputs_embeds": ("t5", {"inputs_embeds": embeds}),
    }


@pytest.mark.parametrize("message", refusals())
def test_one_line_says_what_is_wrong(message):
    name, inputs = refusals()[message]
    model, params = tiny(name)
    with pytest.raises(ValueError, match=message):
        model.apply({"params": params}, **inputs)


def test_what_has_no_attention_weights_is_refused():
    model, params = tiny("gpt2")
    with pytest.raises(ValueError, match="output_attentions and a cache are both given"):
        model.apply({"params": params}, tokens(1, 4), cache=init_cache(model.config, 1, 7), output_attentions=True)
    exact, _ = tiny("gpt2", numerics="exact")
    with pytest.raises(ValueError, match="output_attentions is true and numerics exact"):
        exact.apply({"params": params}, tokens(1, 4), output_attentions=True)
    with pytest.raises(ValueError, match="output_attentions is an argument of a jitted function"):
        jax.jit(lambda flag: model.apply({"params": params}, tokens(1, 4), output_attentions=flag))(True)
    choice = MultipleChoice(config_of("bert"))
    with pytest.raises(ValueError, match=r"the shape \(1, 4\), expected \[B, C, T\]"):
        choice.apply({"params": {}}, tokens(1, 4))
    classifier = SequenceClassifier(config_of("t5"))
    with pytest.raises(ValueError, match="its end token is found by its id"):
        classifier.apply({"params": {}}, inputs_embeds=jnp.zeros((1, 4, 18)))


def test_a_decoder_classifier_reads_the_last_token_of_the_mask_without_ids():
    config = config_of("gpt2", pad_token_id=5)
    model = SequenceClassifier(config)
    params, ids = random_params(config, model), jnp.array([[7, 8, 9, 5]])
    embeds = table_of(model, params, ids)
    apply = functools.partial(model.apply, {"params": params})
    by_id, mask = apply(ids), jnp.array([[1, 1, 1, 0]])
    np.testing.assert_allclose(apply(inputs_embeds=embeds, attention_mask=mask).logits, by_id.logits, atol=1e-5)
    assert not np.allclose(apply(inputs_embeds=embeds).logits, by_id.logits, atol=1e-2)


def test_kernels_return_weights_on_request():
    query = jax.random.normal(jax.random.key(0), (1, 6, 2, 4))
    options = {"mask": F.Mask(causal=True), "platform": "cpu", "implementation": "blocked"}
    output, weights = F.kernel_attention(query, query, query, return_weights=True, **options)
    np.testing.assert_allclose(output, F.kernel_attention(query, query, query, **options), atol=1e-6)
    np.testing.assert_allclose(jnp.einsum("bnts,bsnh->btnh", weights, query), output, atol=1e-6)
