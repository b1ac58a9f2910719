"""The names of the Flax models of ``transformers`` 4, called as its documentation called them."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.jax_utils import replicate
from flax.traverse_util import flatten_dict

import jaxformer.flax_names
from jaxformer.families import build_model
from jaxformer.flax_names import (
    MAPPINGS,
    NAMES,
    FlaxAutoModelForCausalLM,
    FlaxAutoModelForMaskedLM,
    FlaxAutoModelForSeq2SeqLM,
    FlaxAutoModelForSequenceClassification,
    FlaxBaseModelOutput,
    FlaxBertForMaskedLM,
    FlaxBertForPreTraining,
    FlaxCLIPTextModel,
    FlaxCLIPTextModelWithProjection,
    FlaxEncoderDecoderModel,
    FlaxGPT2LMHeadModel,
    FlaxRobertaForMaskedLM,
    FlaxT5EncoderModel,
    FlaxT5ForConditionalGeneration,
    decay_mask,
    shift_tokens_right,
)
from jaxformer.hub import PretrainedWarning, save_pretrained
from jaxformer.hub.kinds import KINDS, build
from jaxformer.hub.save import config_json
from jaxformer.schema import UserError
from tests.models.tiny import config_of, random_params, shapes, tokens

# The names that version 4 of transformers exported for text, by family; those with a class of their own, not ``Auto``.
CLASSES = """
Albert: Model ForMaskedLM ForMultipleChoice ForPreTraining ForQuestionAnswering ForSequenceClassification
    ForTokenClassification
Bart: ForCausalLM ForConditionalGeneration ForQuestionAnswering ForSequenceClassification Model
Bert: ForCausalLM ForMaskedLM ForMultipleChoice ForNextSentencePrediction ForPreTraining ForQuestionAnswering
    ForSequenceClassification ForTokenClassification Model
BigBird: ForCausalLM ForMaskedLM ForMultipleChoice ForPreTraining ForQuestionAnswering ForSequenceClassification
    ForTokenClassification Model
Blenderbot: ForConditionalGeneration Model
BlenderbotSmall: ForConditionalGeneration Model
Bloom: ForCausalLM Model
CLIPText: Model ModelWithProjection
DistilBert: ForMaskedLM ForMultipleChoice ForQuestionAnswering ForSequenceClassification ForTokenClassification Model
Electra: ForCausalLM ForMaskedLM ForMultipleChoice ForPreTraining ForQuestionAnswering ForSequenceClassification
    ForTokenClassification Model
GPT2: LMHeadModel Model
GPTNeo: ForCausalLM Model
GPTJ: ForCausalLM Model
Gemma: ForCausalLM Model
Llama: ForCausalLM Model
LongT5: ForConditionalGeneration Model
Marian: MTModel Model
MBart: ForConditionalGeneration ForQuestionAnswering ForSequenceClassification Model
Mistral: ForCausalLM Model
MT5: EncoderModel ForConditionalGeneration Model
OPT: ForCausalLM Model
Pegasus: ForConditionalGeneration Model
Roberta: ForCausalLM ForMaskedLM ForMultipleChoice ForQuestionAnswering ForSequenceClassification ForTokenClassification
    Model
RobertaPreLayerNorm: ForCausalLM ForMaskedLM ForMultipleChoice ForQuestionAnswering ForSequenceClassification
    ForTokenClassification Model
RoFormer: ForMaskedLM ForMultipleChoice ForQuestionAnswering ForSequenceClassification ForTokenClassification Model
T5: EncoderModel ForConditionalGeneration Model
XGLM: ForCausalLM Model
XLMRoberta: ForCausalLM ForMaskedLM ForMultipleChoice ForQuestionAnswering ForSequenceClassification
    ForTokenClassification Model
Auto: Model ModelForCausalLM ModelForMaskedLM ModelForMultipleChoice ModelForNextSentencePrediction
    ModelForPreTraining ModelForQuestionAnswering ModelForSeq2SeqLM ModelForSequenceClassification
    ModelForTokenClassification
"""
IDS = tokens(2, 6)


def saved(folder, name, kind, **switches):
    """A tiny model of a family in the Hugging Face format, and its parameters."""
    config = config_of(name, **switches)
    model = build(config, kind)
    params = random_params(config, model)
    save_pretrained(folder, model, params)
    return model, params


def test_every_name_of_version_4_is_here():
    lines = CLASSES.replace("\n    ", " ").strip().splitlines()
    expected = [
        f"Flax{family}{head}" for line in lines for family, heads in [line.split(": ")] for head in heads.split()
    ]
    assert set(expected) <= set(NAMES)
    for name in expected:
        found = getattr(jaxformer.flax_names, name)
        assert found.__name__ == name and found.kind in KINDS and found is getattr(jaxformer.flax_names, name)
        assert issubclass(found, jaxformer.flax_names.FlaxPreTrainedModel)
    assert issubclass(FlaxBertForMaskedLM, jaxformer.flax_names.FlaxBertPreTrainedModel)
    assert not issubclass(FlaxRobertaForMaskedLM, jaxformer.flax_names.FlaxBertPreTrainedModel)
    with pytest.raises(AttributeError, match=r"no attribute 'FlaxBertForMaskLM'.*FlaxBertForMaskedLM"):
        _ = jaxformer.flax_names.FlaxBertForMaskLM


def test_a_masked_language_model(tmp_path):
    model, params = saved(tmp_path, "bert", "masked_lm")
    old = FlaxBertForMaskedLM.from_pretrained(tmp_path, from_pt=True)
    expected = model.apply({"params": params}, IDS).logits
    np.testing.assert_allclose(old(IDS).logits, expected, atol=1e-5)
    np.testing.assert_array_equal(old(input_ids=IDS)[0], old(IDS)["logits"])
    assert isinstance(old(IDS, return_dict=False), tuple)
    other = jax.tree.map(lambda leaf: leaf * 0, old.params)
    assert not np.any(old(IDS, params=other).logits)
    assert old.config.model_type == "bert" and old.config.vocab_size == 29 and old.dtype == jnp.float32
    _, apart = FlaxBertForMaskedLM.from_pretrained(tmp_path, _do_init=False)
    assert jax.tree.structure(apart) == jax.tree.structure(old.params)
    states = old(IDS, output_hidden_states=True).hidden_states
    assert len(states) == 3
    old.save_pretrained(tmp_path / "again", params=other)
    assert not np.any(FlaxAutoModelForMaskedLM.from_pretrained(tmp_path / "again")(IDS).logits)


def test_the_old_training_step(tmp_path):
    """A step as the examples wrote it: the model's call inside of a differentiated function, with a key for dropout."""
    saved(tmp_path, "bert", "masked_lm", dropout=0.3)
    model = FlaxAutoModelForMaskedLM.from_pretrained(tmp_path, dtype=jnp.bfloat16)
    assert model.dtype == jnp.bfloat16 and model.params["layers"]["attention_norm"]["scale"].dtype == jnp.float32

    def loss(params, key):
        logits = model(input_ids=IDS, params=params, dropout_rng=key, train=True)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, IDS).mean()

    step = jax.jit(jax.value_and_grad(loss))
    (first, gradients), (second, _) = (step(model.params, jax.random.key(seed)) for seed in (0, 1))
    assert first != second and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    with pytest.raises(UserError, match="train is true without dropout_rng, expected a key"):
        model(IDS, train=True)


def test_two_pre_training_heads_have_their_old_names(tmp_path):
    saved(tmp_path, "bert", "pre_training")
    output = FlaxBertForPreTraining.from_pretrained(tmp_path)(IDS)
    assert output.prediction_logits.shape == (2, 6, 29) and output.seq_relationship_logits.shape == (2, 2)


@pytest.mark.slow
def test_a_configuration_of_transformers(tmp_path):
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        "bert",
        vocab_size=29,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
    )
    fresh = FlaxAutoModelForSequenceClassification.from_config(config, seed=1)
    assert fresh(IDS).logits.shape == (2, 3)
    saved(tmp_path, "bert", "masked_lm", hidden_size=12, num_heads=2, num_layers=1, intermediate_size=8)
    of_file = AutoConfig.from_pretrained(tmp_path, num_labels=3, hidden_dropout_prob=0.25)
    with pytest.warns(UserWarning, match="newly initialised"):
        opened = FlaxAutoModelForSequenceClassification.from_pretrained(tmp_path, config=of_file)
    assert opened(IDS).logits.shape == (2, 3) and opened.config is of_file
    assert opened.module.config.dropout == 0.25 and opened.module.config.attention_dropout == 0.0
    # Of other sizes than the file's is no model of it.
    with pytest.raises(UserError, match="position"):
        FlaxAutoModelForSequenceClassification.from_pretrained(tmp_path, config=config)


def test_keys_of_a_configuration_replace_those_of_the_file(tmp_path):
    saved(tmp_path, "bert", "masked_lm")
    opened = FlaxBertForMaskedLM.from_pretrained(
        tmp_path, hidden_dropout_prob=0.5, trust_remote_code=True, gradient_checkpointing=True
    )
    assert opened.module.config.dropout == 0.5 and opened.module.config.remat == "full"
    with pytest.raises(UserError, match=r"'hidden_dropout' is no keyword of this model.*hidden_dropout_prob"):
        FlaxBertForMaskedLM.from_pretrained(tmp_path, hidden_dropout=0.5)
    with pytest.raises(UserError, match=r"'trust_remote' is no keyword of this model.*trust_remote_code"):
        FlaxBertForMaskedLM.from_config(opened.config, trust_remote=True)


def test_names_of_classes_and_token_ids_set_later_are_saved(tmp_path):
    saved(tmp_path, "bert", "sequence_classification")
    old = FlaxAutoModelForSequenceClassification.from_pretrained(tmp_path)
    old.config.id2label, old.config.pad_token_id = {0: "no", 1: "yes"}, 3
    old.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["id2label"] == {"0": "no", "1": "yes"} and written["label2id"] == {"no": 0, "yes": 1}
    assert written["pad_token_id"] == 3
    old.config.id2label = {0: "no", 1: "yes", 2: "perhaps"}
    with pytest.raises(UserError, match="id2label has 3 names, expected 2"):
        old.save_pretrained(tmp_path / "again")


def test_parameters_apart_from_the_model():
    module, params = _tiny_bert()
    old = FlaxAutoModelForMaskedLM.from_config(config_json(module), _do_init=False)
    with pytest.raises(UserError, match="made with _do_init=False and holds no parameters; give params="):
        old(IDS)
    assert jax.tree.map(jnp.shape, old.params_shape_tree) == jax.tree.map(jnp.shape, params)
    fresh = old.init_weights(jax.random.PRNGKey(0), (1, 1), params={"mlm_head": params["mlm_head"]})
    np.testing.assert_array_equal(fresh["mlm_head"]["bias"], params["mlm_head"]["bias"])
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)
    np.testing.assert_allclose(old(IDS, params=params)[0], module.apply({"params": params}, IDS).logits, atol=1e-5)
    half = old.to_bf16(params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(old.to_fp32(half))} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(old.to_fp16(params))} == {"float16"}
    chosen = old.to_bf16(params, decay_mask(params))["mlm_head"]["dense"]
    assert chosen["kernel"].dtype == jnp.bfloat16 and chosen["bias"].dtype == jnp.float32


def _tiny_bert():
    config = config_of("bert")
    module = build(config, "masked_lm")
    return module, random_params(config, module)


def test_what_decays_is_no_bias_and_no_scale():
    for name in ("bert", "t5", "gpt2"):
        mask = flatten_dict(decay_mask(shapes(config_of(name))))
        assert {path[-1] for path, decays in mask.items() if decays} == {"kernel", "embedding"}
        assert {path[-1] for path, decays in mask.items() if not decays} <= {"bias", "scale"}
        assert any("norm" in path[-2] for path in mask) and not any(mask[path] for path in mask if "norm" in path[-2])


@pytest.mark.slow
def test_gradient_checkpointing_keeps_the_numbers(tmp_path):
    saved(tmp_path, "bert", "masked_lm", dropout=0.3)
    model = FlaxBertForMaskedLM.from_pretrained(tmp_path)

    def gradient():
        def loss(params):
            return model(IDS, params=params, dropout_rng=jax.random.PRNGKey(1), train=True)[0].sum()

        program = jax.make_jaxpr(jax.grad(loss))(model.params)
        return jax.grad(loss)(model.params), str(program).count("checkpoint") + str(program).count("remat")

    plain, none = gradient()
    model.enable_gradient_checkpointing()
    again, some = gradient()
    assert some > none
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), again, plain)


def test_inputs_in_their_old_order(tmp_path):
    saved(tmp_path, "bert", "masked_lm")
    old, types = FlaxBertForMaskedLM.from_pretrained(tmp_path), IDS % 2
    places = jnp.arange(6)[::-1] * jnp.ones_like(IDS)
    expected = old(IDS, token_type_ids=types, position_ids=places).logits
    np.testing.assert_allclose(old(IDS, jnp.ones_like(IDS), types, places).logits, expected, atol=1e-5)
    assert np.abs(np.asarray(old(IDS).logits - expected)).max() > 1e-3
    with pytest.raises(UserError, match="5 inputs are given without their names, expected at most 4"):
        old(IDS, None, None, None, None)


def test_a_cache_of_a_decoder(tmp_path):
    """The old loop: a mask of all places, positions given, a token at a time."""
    saved(tmp_path, "gpt2", "causal_lm")
    old = FlaxGPT2LMHeadModel.from_pretrained(tmp_path)
    real = np.ones((2, 6), int)
    real[1, :2] = 0
    places = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    whole = old(IDS, real, position_ids=places).logits
    mask = np.concatenate([real[:, :4], np.ones((2, 6), int)], axis=1)
    cache, found = old.init_cache(2, 10), []
    for start, end in ((0, 4), (4, 5), (5, 6)):
        output = old(IDS[:, start:end], attention_mask=mask, position_ids=places[:, start:end], past_key_values=cache)
        cache = output.past_key_values
        found.append(output.logits)
    np.testing.assert_allclose(np.concatenate(found, axis=1)[real == 1], whole[real == 1], atol=1e-4)
    assert "past_key_values" not in old(IDS)
    saved(tmp_path / "bert", "bert", "masked_lm")
    with pytest.raises(UserError, match="bert is an encoder, expected a model that writes"):
        FlaxBertForMaskedLM.from_pretrained(tmp_path / "bert").init_cache(2, 10)


@pytest.mark.parametrize(("name", "kind"), [("gpt2", "causal_lm"), ("t5", "seq2seq_lm"), ("bart", "seq2seq_lm")])
@pytest.mark.parametrize("more", [{}, {"num_beams": 3}, {"do_sample": True}], ids=["greedy", "beams", "draws"])
@pytest.mark.default_cases("greedy-gpt2-causal_lm")
def test_text_is_written_inside_of_pmap(tmp_path, name, kind, more):
    """Each device writes what the library's ``generate`` writes for its rows outside."""
    ids = {"decoder_start_token_id": 0} if kind == "seq2seq_lm" else {}
    saved(tmp_path, name, kind, eos_token_id=1, pad_token_id=0, **ids)
    opener = FlaxAutoModelForCausalLM if kind == "causal_lm" else FlaxAutoModelForSeq2SeqLM
    old = opener.from_pretrained(tmp_path)
    prompts, mask = np.asarray(tokens(8, 5)) % 27 + 2, np.ones((8, 5), int)
    mask[2, :2] = mask[5, 3:] = 0
    params, key = old.params, jax.random.PRNGKey(7)
    drawn = {"prng_key": key} if "do_sample" in more else {}

    def write(params, ids, mask):
        old.params = params  # as the summarization program had it
        return old.generate(ids, attention_mask=mask, max_length=9, **drawn, **more).sequences

    inside = jax.pmap(write, "batch")(replicate(params), prompts[:, None], mask[:, None])
    old.params = params
    for row in range(8):
        expected = write(params, prompts[row : row + 1], mask[row : row + 1])
        assert isinstance(expected, np.ndarray)
        np.testing.assert_array_equal(inside[row], expected)
    assert name == "bart" or len(np.unique(np.asarray(inside)[:, 0, -4:], axis=0)) > 1


def test_settings_of_the_files_and_of_the_configuration_are_defaults(tmp_path):
    saved(tmp_path, "gpt2", "causal_lm", pad_token_id=0, eos_token_id=28, generation='{"max_length": 8}')
    old = FlaxGPT2LMHeadModel.from_pretrained(tmp_path)
    assert old.generate(IDS).sequences.shape == (2, 8) and old.generate(IDS, max_length=10).sequences.shape == (2, 10)
    assert old.generate(IDS, max_new_tokens=1).sequences.shape == (2, 7)
    with pytest.raises(UserError, match="max_length is 6 and a sequence begins with 6 tokens, expected more"):
        old.generate(IDS, max_length=6)
    last = int(old.generate(IDS, max_length=7).sequences[0, -1])
    old.config.suppress_tokens = [last]
    assert int(old.generate(IDS, max_length=7).sequences[0, -1]) != last


@pytest.mark.slow
def test_a_cache_of_an_encoder_decoder(tmp_path):
    saved(tmp_path, "bart", "seq2seq_lm")
    old, mask = FlaxAutoModelForSeq2SeqLM.from_pretrained(tmp_path), jnp.array([[1] * 6, [1] * 3 + [0] * 3])
    encoded = old.encode(IDS, mask)
    cache, found = old.init_cache(2, 8, encoded), []
    for place in range(3):
        step = old.decode(IDS[:, place : place + 1], encoded, mask, past_key_values=cache)
        cache = step.past_key_values
        found.append(step.logits)
    expected = old(IDS, mask, IDS[:, :3]).logits
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=1e-4)


@pytest.mark.slow
def test_tables_of_classes():
    names = {}
    for table in MAPPINGS:
        found = getattr(jaxformer.flax_names, table)
        names[table] = {config.model_type: model.__name__ for config, model in found.items()}
        assert set(names[table].values()) <= set(NAMES)
    assert names["FLAX_MODEL_FOR_MASKED_LM_MAPPING"]["bert"] == "FlaxBertForMaskedLM"
    assert names["FLAX_MODEL_FOR_CAUSAL_LM_MAPPING"]["gpt2"] == "FlaxGPT2LMHeadModel"
    assert names["FLAX_MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING"]["marian"] == "FlaxMarianMTModel"
    assert names["FLAX_MODEL_MAPPING"]["t5"] == "FlaxT5Model"
    assert "gpt2" not in names["FLAX_MODEL_FOR_MASKED_LM_MAPPING"]


def test_a_module_that_has_the_names_of_its_family(tmp_path):
    """Programs found ``shift_tokens_right`` in the module of the model's class."""
    saved(tmp_path, "t5", "seq2seq_lm")
    old = FlaxT5ForConditionalGeneration.from_pretrained(tmp_path)
    assert sys.modules[old.__module__].shift_tokens_right is shift_tokens_right


def test_another_family_is_refused(tmp_path):
    saved(tmp_path, "bert", "masked_lm")
    with pytest.raises(UserError, match="the model is a bert, expected one of roberta for FlaxRobertaForMaskedLM"):
        FlaxRobertaForMaskedLM.from_pretrained(tmp_path)


def test_a_decoder_writes(tmp_path):
    model, params = saved(tmp_path, "gpt2", "causal_lm")
    old = FlaxGPT2LMHeadModel.from_pretrained(tmp_path)
    written = old.generate(IDS, max_length=9, do_sample=False, eos_token_id=0, pad_token_id=0).sequences
    assert written.shape == (2, 9)
    text = np.asarray(IDS)
    for _ in range(3):
        logits = model.apply({"params": params}, jnp.asarray(text)).logits[:, -1]
        text = np.hstack([text, np.asarray(jnp.argmax(logits, -1))[:, None]])
    np.testing.assert_array_equal(written, text)
    FlaxAutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.slow
def test_an_encoder_decoder_its_encoder_alone_and_its_two_halves(tmp_path):
    model, params = saved(tmp_path, "t5", "seq2seq_lm")
    old = FlaxT5ForConditionalGeneration.from_pretrained(tmp_path)
    mask, target = jnp.array([[1] * 6, [1] * 4 + [0] * 2]), tokens(2, 4, seed=1)
    whole = old(IDS, mask, decoder_input_ids=target)
    expected = model.apply({"params": params}, IDS, mask, target)
    np.testing.assert_allclose(whole.logits, expected.logits, atol=1e-5)
    encoded = old.encode(IDS, mask)
    np.testing.assert_allclose(encoded.last_hidden_state, expected.encoder_last_hidden_state, atol=1e-5)
    np.testing.assert_allclose(old.decode(target, encoded, mask).logits, expected.logits, atol=1e-4)
    again = FlaxBaseModelOutput(last_hidden_state=encoded[0])
    np.testing.assert_allclose(old.decode(target, again, mask)[0], expected.logits, atol=1e-4)
    # T5's encoder alone reads the file of the whole, and leaves the rest out.
    with pytest.warns(UserWarning, match="left out"):
        encoder = FlaxT5EncoderModel.from_pretrained(tmp_path)
    np.testing.assert_allclose(encoder(IDS, mask).last_hidden_state, expected.encoder_last_hidden_state, atol=1e-5)
    assert set(encoder.params) == {"shared", "encoder"}
    sequences = old.generate(IDS, mask, max_length=5, num_beams=2, eos_token_id=0, decoder_start_token_id=0).sequences
    assert sequences.shape == (2, 5) and not np.any(sequences[:, 0])


def test_clip_in_a_folder_of_a_repository(tmp_path):
    model, params = saved(tmp_path / "text_encoder", "clip_text", "text_projection", eos_token_id=2)
    output = FlaxCLIPTextModelWithProjection.from_pretrained(tmp_path, subfolder="text_encoder")(IDS)
    np.testing.assert_allclose(output.text_embeds, model.apply({"params": params}, IDS).text_embeds, atol=1e-5)
    body = FlaxCLIPTextModel.from_pretrained(tmp_path, subfolder="text_encoder")(IDS)
    highest = np.argmax(np.asarray(IDS), axis=1)
    np.testing.assert_array_equal(body.pooler_output, body.last_hidden_state[np.arange(2), highest])


def test_labels_as_a_decoder_reads_them():
    shifted = shift_tokens_right(np.array([[5, 6, 2, -100]]), pad_token_id=1, decoder_start_token_id=2)
    assert shifted.tolist() == [[2, 5, 6, 2]]
    assert shift_tokens_right(np.array([[-100, 5]]), 1, 2).tolist() == [[2, 1]]


def test_its_models_are_the_library_s(tmp_path):
    """``module`` and ``params`` are what every function here takes."""
    model, _ = saved(tmp_path, "gpt2", "causal_lm")
    old = FlaxGPT2LMHeadModel.from_pretrained(tmp_path)
    assert type(old.module) is type(build_model(model.config))
    np.testing.assert_allclose(old.module.apply({"params": old.params}, IDS).logits, old(IDS).logits, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*left out")
def test_an_encoder_decoder_of_two_models(tmp_path):
    sides = {"bert": "masked_lm", "gpt2": "causal_lm"}
    ids = {"gpt2": {"bos_token_id": 1, "eos_token_id": 2}}
    for name, kind in sides.items():
        saved(tmp_path / name, name, kind, **ids.get(name, {}))
    with pytest.warns(PretrainedWarning, match="newly initialised"):
        model = FlaxEncoderDecoderModel.from_encoder_decoder_pretrained(
            tmp_path / "bert", tmp_path / "gpt2", encoder_from_pt=True
        )
    model.save_pretrained(tmp_path / "both")
    again = FlaxEncoderDecoderModel.from_pretrained(tmp_path / "both")
    outputs = [m(IDS, decoder_input_ids=IDS).logits for m in (model, again)]
    np.testing.assert_array_equal(*outputs)
    decoded = again.decode(IDS, again.encode(IDS)).logits
    np.testing.assert_allclose(decoded, outputs[0], atol=1e-5)
    assert again.generate(IDS, max_length=5).sequences.shape == (2, 5)
    assert again.config.decoder.add_cross_attention and again.config.model_type == "encoder-decoder"
    with pytest.raises(UserError, match="the model is a bert, expected one of encoder_decoder for FlaxEncoder"):
        FlaxEncoderDecoderModel.from_pretrained(tmp_path / "bert")
