"""The names of the Flax models of ``transformers`` 4, called as its documentation called them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxformer.flax_names
from jaxformer.families import build_model
from jaxformer.flax_names import (
    NAMES,
    FlaxAutoModelForCausalLM,
    FlaxAutoModelForMaskedLM,
    FlaxAutoModelForSequenceClassification,
    FlaxBertForMaskedLM,
    FlaxBertForPreTraining,
    FlaxCLIPTextModel,
    FlaxCLIPTextModelWithProjection,
    FlaxEncoderDecoderModel,
    FlaxGPT2LMHeadModel,
    FlaxRobertaForMaskedLM,
    FlaxT5EncoderModel,
    FlaxT5ForConditionalGeneration,
    shift_tokens_right,
)
from jaxformer.hub import PretrainedWarning, save_pretrained
from jaxformer.hub.kinds import KINDS, build
from jaxformer.schema import UserError
from tests.models.tiny import config_of, random_params, tokens

# The names that version 4 of transformers exported for text, by family; those with a class of their own, not ``Auto``.
CLASSES = """
Albert: Model ForMaskedLM ForMultipleChoice ForPreTraining ForQuestionAnswering ForSequenceClassification
    ForTokenClassification
Bart: ForCausalLM ForConditionalGeneration ForQuestionAnswering ForSequenceClassification Model
Bert: ForCausalLM ForMaskedLM ForMultipleChoice ForNextSentencePrediction ForPreTraining ForQuestionAnswering
    ForSequenceClassification ForTokenClassification Model
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
    with pytest.warns(UserWarning, match="newly initialised"):
        opened = FlaxAutoModelForSequenceClassification.from_pretrained(tmp_path, config=config)
    assert opened(IDS).logits.shape == (2, 3)


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
    with pytest.raises(UserError, match=r"^transformers has no bert model with head 'seq2seq_lm'"):
        FlaxEncoderDecoderModel.from_pretrained(tmp_path / "bert")
