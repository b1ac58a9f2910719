"""Opening models: what is taken, initialised, left out and refused."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxformer.hub as hub
from jaxformer.parallel.mesh import ParallelConfig, make_mesh
from jaxformer.schema import UserError
from tests.hub import tiny

IDS = jnp.arange(1, 6)[None]


@pytest.fixture(autouse=True)
def _no_silent_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", hub.PretrainedWarning)
        yield


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, nn.unbox(a), nn.unbox(b))


@pytest.mark.parametrize(
    ("family", "kind", "auto"),
    [
        ("bert", "pre_training", hub.AutoModelForPreTraining),
        ("electra", "pre_training", hub.AutoModelForPreTraining),
        ("gpt2", "causal_lm", hub.AutoModelForCausalLM),
        ("t5", "seq2seq_lm", hub.AutoModelForSeq2SeqLM),
        ("modernbert", "token_classification", hub.AutoModelForTokenClassification),
        ("albert", "question_answering", hub.AutoModelForQuestionAnswering),
        ("distilbert", "multiple_choice", hub.AutoModelForMultipleChoice),
        ("llama", "body", hub.AutoModel),
    ],
)
@pytest.mark.default_cases("bert-*", "gpt2-*", "t5-*")
def test_what_was_saved_comes_back(tmp_path, family, kind, auto):
    model, params = tiny.make(family, kind, **({"embedding_size": 4} if family == "albert" else {}))
    if family == "modernbert":  # the norm that the first block does not use has no place in a file
        scale = params["layers"]["attention_norm"]["scale"]
        params["layers"]["attention_norm"]["scale"] = scale.at[0].set(1.0)
    again, read = auto.from_pretrained(hub.save_pretrained(tmp_path, model, params))
    same(params, read)
    assert type(again) is type(model)
    inputs = jnp.stack([IDS, IDS], axis=1) if kind == "multiple_choice" else IDS
    apply = jax.jit(lambda model, params: model.apply({"params": params}, inputs), static_argnums=0)
    same(apply(model, params), apply(again, read))


def test_the_outputs_have_the_names_users_know(tmp_path):
    model, params = hub.AutoModel.from_pretrained(tiny.save(tmp_path / "b", "bert", "body"))
    output = model.apply({"params": params}, input_ids=IDS, attention_mask=jnp.ones_like(IDS))
    assert output.last_hidden_state.shape == (1, 5, 8) and output.pooler_output.shape == (1, 8)
    model, params = hub.AutoModel.from_pretrained(tiny.save(tmp_path / "t", "t5", "body"))
    output = model.apply({"params": params}, IDS)
    assert output.last_hidden_state.shape == output.encoder_last_hidden_state.shape and output.pooler_output is None
    model, params = hub.AutoModelForQuestionAnswering.from_pretrained(
        tiny.save(tmp_path / "q", "bert", "question_answering")
    )
    output = model.apply({"params": params}, IDS)
    assert output.start_logits.shape == output.end_logits.shape == (1, 5)


def test_a_body_opened_with_a_head_names_what_is_new(tmp_path):
    folder = tiny.save(tmp_path, "bert", "body")
    with pytest.warns(
        hub.PretrainedWarning, match=r"has no classifier/kernel, classifier/bias: newly initialised\. Train"
    ):
        _, params = hub.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=7)
    assert params["classifier"]["kernel"].shape == (8, 7) and np.std(params["classifier"]["kernel"]) > 0
    with pytest.warns(hub.PretrainedWarning):
        _, again = hub.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=7)
        _, other = hub.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=7, seed=1)
    same(params, again)
    assert np.any(np.asarray(params["classifier"]["kernel"]) != np.asarray(other["classifier"]["kernel"]))


def test_a_head_opened_without_one_names_what_is_left_out(tmp_path):
    model, params = tiny.make("gpt2", "sequence_classification")
    folder = hub.save_pretrained(tmp_path, model, params)
    with pytest.warns(hub.PretrainedWarning, match=r"more than this model reads, left out: score\.weight$"):
        _, body = hub.AutoModel.from_pretrained(folder)
    same({k: v for k, v in params.items() if k != "classifier"}, body)


def test_another_number_of_classes_is_asked_for(tmp_path):
    folder = tiny.save(tmp_path, "bert", "sequence_classification", labels=("no", "yes"))
    model, _ = hub.AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.labels == ("no", "yes")
    with pytest.raises(UserError, match=r"classifier\.weight of the checkpoint is \[2, 8\], expected \[5, 8\]"):
        hub.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5)
    with pytest.warns(hub.PretrainedWarning, match="has no classifier/kernel, classifier/bias"):
        model, params = hub.AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=5, ignore_mismatched_sizes=True
        )
    assert params["classifier"]["kernel"].shape == (8, 5) and model.labels == ()


def test_dtype_overrides_and_errors_of_keys(tmp_path):
    folder = tiny.save(tmp_path, "gpt2", "causal_lm")
    model, params = hub.AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16", dropout=0.25)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert (model.config.dtype, model.config.dropout) == ("bfloat16", 0.25)
    with pytest.raises(UserError, match=r"'dropuot' is no key of the model's configuration; did you mean dropout"):
        hub.AutoModelForCausalLM.from_pretrained(folder, dropuot=0.25)
    with pytest.raises(
        UserError, match="transformers has no gpt2 model with head 'masked_lm', expected one of: body, causal_lm, "
    ):
        hub.AutoModelForMaskedLM.from_pretrained(folder)
    with pytest.raises(UserError, match="transformers has no opt model with head 'token_classification', expected one"):
        hub.AutoModelForTokenClassification.from_pretrained(tiny.save(tmp_path / "opt", "opt", "causal_lm"))


def test_on_a_mesh_every_device_holds_its_part(tmp_path):
    model, params = tiny.make("llama", "causal_lm", tie_embeddings=False, vocab_size=16)
    folder = hub.save_pretrained(tmp_path, model, params)
    mesh = make_mesh(ParallelConfig(fsdp=4, tensor=2))
    _, spread = hub.AutoModelForCausalLM.from_pretrained(folder, mesh=mesh)
    same(params, spread)
    kernel = spread["layers"]["feed_forward"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 2, 6)
    assert len(kernel.sharding.device_set) == 8


def test_a_new_head_on_a_mesh(tmp_path):
    folder = tiny.save(tmp_path, "bert", "body")
    mesh = make_mesh(ParallelConfig(fsdp=4))
    with pytest.warns(hub.PretrainedWarning):
        _, spread = hub.AutoModelForSequenceClassification.from_pretrained(folder, mesh=mesh)
        _, whole = hub.AutoModelForSequenceClassification.from_pretrained(folder)
    same(whole, spread)
    assert spread["classifier"]["kernel"].addressable_shards[0].data.shape == (2, 2)


def test_the_prefix_of_the_body_may_be_on_either_side(tmp_path):
    """The first GPT-2 files hold the body's names alone, and the causal mask as a buffer."""
    from safetensors.numpy import load_file, save_file

    model, params = tiny.make("gpt2", "causal_lm")
    path = hub.save_pretrained(tmp_path, model, params) / "model.safetensors"
    bare = {name.removeprefix("transformer."): array for name, array in load_file(path).items()}
    save_file(bare | {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32)}, path)
    same(params, hub.AutoModelForCausalLM.from_pretrained(tmp_path)[1])


def test_what_is_there_twice_is_not_called_left_out(tmp_path):
    from safetensors.numpy import load_file, save_file

    model, params = tiny.make("opt", "causal_lm")
    path = hub.save_pretrained(tmp_path, model, params) / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["model.decoder.embed_tokens.weight"]}, path)
    same(params, hub.AutoModelForCausalLM.from_pretrained(tmp_path)[1])


def test_ids_of_special_tokens_as_files_have_them(tmp_path):
    folder = tiny.save(tmp_path, "llama", "causal_lm")
    tiny.edit(folder, pad_token_id=-1, eos_token_id=[2, 7], bos_token_id=1)
    config = hub.AutoConfig.from_pretrained(folder)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (None, 1, (2, 7))
    assert config.end_ids == (2, 7)


def test_the_first_t5_does_not_say_its_activation(tmp_path):
    folder = tiny.save(tmp_path, "t5", "seq2seq_lm")
    tiny.edit(folder, feed_forward_proj=None)
    assert hub.AutoConfig.from_pretrained(folder).activation == "relu"


def test_the_norms_of_the_oldest_files(tmp_path):
    from safetensors.numpy import load_file, save_file

    model, params = tiny.make("bert", "masked_lm")
    path = hub.save_pretrained(tmp_path, model, params) / "model.safetensors"
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, array in load_file(path).items():
        for new, former in old.items():
            name = name.replace(new, former)
        renamed[name] = array
    save_file(renamed, path)
    same(params, hub.AutoModelForMaskedLM.from_pretrained(tmp_path)[1])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "gtp2"}, r"config\.json has model_type: 'gtp2', expected one of .*; did you mean gpt2\?"),
        ({"model_type": None}, r"config\.json has model_type: None, expected one of"),
        # A key that is left out is that of the class in transformers.
        ({"hidden_size": None}, r"word_embeddings\.weight of the checkpoint is \[17, 8\], expected \[17, 768\]"),
        ({"hidden_size": -8}, "does not describe a bert model: hidden_size: .*greater than or equal to 1, got -8"),
        ({"hidden_size": 10**15}, "does not describe a bert model: hidden_size: .*less than or equal to"),
        ({"vocab_size": 10**12}, "does not describe a bert model: vocab_size"),
        ({"num_hidden_layers": 10**9}, "does not describe a bert model: num_layers"),
        ({"hidden_size": "wide"}, "does not describe a bert model: hidden_size: .*got 'wide'"),
        ({"num_attention_heads": 3}, "does not describe a bert model: it: .*hidden_size is 8 and num_heads 3"),
        ({"hidden_act": "mish"}, "has the activation 'mish', expected one of gelu"),
        ({"num_hidden_layers": 2}, r"has bert\.encoder\.layer\.2\..*, expected 2 layers by its config"),
        ({"num_hidden_layers": 4}, r"has no bert\.encoder\.layer\.3\.\S+, expected it for this config"),
        ({"intermediate_size": 13}, r"intermediate\.dense\.weight of the checkpoint is \[12, 8\], expected \[13, 8\]"),
        (
            {"model_type": "distilbert", **dict.fromkeys(["dim", "hidden_dim"], 8)},
            "does not describe a distilbert model: it: .*hidden_size is 8 and num_heads 12",
        ),
        ({"id2label": {"a": "b"}}, "id2label with the keys"),
    ],
)
def test_a_config_that_makes_no_sense(tmp_path, keys, message):
    folder = tiny.save(tmp_path, "bert", "masked_lm")
    tiny.edit(folder, **keys)
    with pytest.raises(UserError, match=message):
        hub.AutoModelForMaskedLM.from_pretrained(folder)


def test_a_checkpoint_of_another_family(tmp_path):
    folder = tiny.save(tmp_path, "bert", "masked_lm")
    tiny.save(tmp_path / "other", "gpt2", "causal_lm")
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"expected the names of bert; it has transformer\.h\.0"):
        hub.AutoModelForMaskedLM.from_pretrained(folder)


def test_a_bias_that_the_model_has_not_must_be_zero(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = tiny.save(tmp_path, "bart", "seq2seq_lm")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"final_logits_bias": np.zeros((1, 17), np.float32)}, path)
    hub.AutoModelForSeq2SeqLM.from_pretrained(folder)
    save_file(tensors | {"final_logits_bias": np.ones((1, 17), np.float32)}, path)
    with pytest.raises(UserError, match="final_logits_bias of the checkpoint is not zero"):
        hub.AutoModelForSeq2SeqLM.from_pretrained(folder)


def test_no_parameter_is_new_by_accident(tmp_path):
    """A hole in the body is refused, not filled."""
    from safetensors.numpy import load_file, save_file

    folder = tiny.save(tmp_path, "bert", "masked_lm")
    path = folder / "model.safetensors"
    kept = {name: array for name, array in load_file(path).items() if "token_type" not in name}
    save_file(kept, path)
    with pytest.raises(UserError, match=r"has no bert\.embeddings\.token_type_embeddings\.weight, expected it"):
        hub.AutoModelForMaskedLM.from_pretrained(folder)


def test_names_of_models_that_are_none(tmp_path):
    with pytest.raises(UserError, match="is neither a folder nor a name on the Hub, expected a folder or owner/name"):
        hub.AutoModel.from_pretrained(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"has no config\.json, expected one"):
        hub.AutoModel.from_pretrained(tmp_path)


def test_the_parameters_read_are_those_of_init(tmp_path):
    model, params = hub.AutoModelForCausalLM.from_pretrained(tiny.save(tmp_path, "qwen3", "causal_lm"))
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), IDS))["params"]
    assert {k: v.shape for k, v in flatten_dict(shapes).items()} == {
        k: v.shape for k, v in flatten_dict(params).items()
    }


@pytest.mark.parametrize("family", ["t5", "bert", "llama"])
def test_a_type_is_blamed_on_who_named_it(tmp_path, family):
    """A ``config.json`` may say float16, in which nothing is computed here; a caller may not."""
    from safetensors.numpy import load_file, save_file

    opener = hub.AutoModel
    folder = tiny.save(tmp_path, family, "body")
    path = folder / "model.safetensors"
    tensors = {name: array.astype(np.float16) for name, array in load_file(path).items()}
    save_file(tensors, path)
    for key in ("dtype", "torch_dtype"):
        tiny.edit(folder, **{"dtype": None, "torch_dtype": None, key: "float16"})
        model, params = opener.from_pretrained(folder)
        assert model.config.dtype == "float32"
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    for refused in ("float16", "fp16", None):
        with pytest.raises(UserError, match=f"^dtype is {refused!r}, expected float32 or bfloat16"):
            opener.from_pretrained(folder, dtype=refused)
        if refused is not None:
            with pytest.raises(UserError, match=f"^dtype is {refused!r}, expected float32 or bfloat16"):
                hub.save_pretrained(tmp_path / "saved", model, params, dtype=refused)
    with pytest.raises(UserError, match=r"^dropout is 5, given in place of config.json's, expected less than 1"):
        opener.from_pretrained(folder, dropout=5)
    with pytest.raises(UserError, match=r"^dtype is 'float16', given in place of config.json's, expected 'float32' or"):
        hub.AutoConfig.from_pretrained(folder, dtype="float16")
    assert not (tmp_path / "saved").exists()
