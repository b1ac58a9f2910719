"""What a ``config.json`` may say, live against PyTorch ``transformers``: opened there and here, and written back."""

import warnings

import numpy as np
import pytest

import jaxformer

pytestmark = pytest.mark.parity

SMALL = {
    "vocab_size": 31,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 40,
}


SIDES = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
SIDES |= {"encoder_ffn_dim": 20, "decoder_ffn_dim": 20, "d_model": 24}
SIDES |= {"decoder_start_token_id": 2, "pad_token_id": 1}
T5 = {"d_model": 24, "num_layers": 2, "num_heads": 4, "d_ff": 20, "d_kv": 6, "decoder_start_token_id": 0}
KEYS = {
    "gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 40},
    "opt": {"ffn_dim": 20, "word_embed_proj_dim": 24},
    "bloom": {"n_layer": 2, "n_head": 4},
    "gemma": {"head_dim": 6, "num_key_value_heads": 2},
    "gpt_neox": {
        "num_attention_heads": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
    },
    "modernbert": {"pad_token_id": 0},
    "distilbert": {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 20},
    "electra": {"embedding_size": 20},
    "albert": {"embedding_size": 20},
    "t5": T5,
    "mt5": T5,
    **dict.fromkeys(("bart", "mbart", "marian", "pegasus"), SIDES),
}
for decoder in ("llama", "mistral", "qwen2", "qwen3"):
    KEYS[decoder] = {"num_key_value_heads": 2}


def save(folder, model_type, opener, **keys):
    """Writes a random model of PyTorch and returns the folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, **keys})
    model = getattr(transformers, opener).from_config(config, attn_implementation="eager")
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):  # sinusoids are frozen ones
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def theirs(folder, opener, ids, mask):
    import torch
    import transformers

    model = getattr(transformers, opener).from_pretrained(folder, attn_implementation="eager").eval()
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"]
    with torch.no_grad():
        output = model(**batch)
    return np.asarray(output.logits if hasattr(output, "logits") else output.last_hidden_state)


def assert_same(folder, opener, length=12, **overrides):
    """The outputs of real tokens are PyTorch's, and PyTorch's again of what we write."""
    model, params = getattr(jaxformer, opener).from_pretrained(folder, **overrides)
    vocabulary = model.config.vocab_size
    pad = model.config.pad_token_id or 0
    ids = np.random.default_rng(0).integers(0, vocabulary, (3, length))
    ids = np.where(ids == pad, (pad + 1) % vocabulary, ids)
    mask = np.ones_like(ids)
    if not overrides:  # dynamic positions go by the row here, by the longest row of a batch there
        mask[1, length // 2 :] = 0
    ids[mask == 0] = pad
    targets = {"decoder_input_ids": ids} if model.config.architecture == "encoder_decoder" else {}
    output = model.apply({"params": params}, ids, mask, **targets)
    ours = np.asarray(output.logits if hasattr(output, "logits") else output.last_hidden_state)
    real = mask == 1 if ours.shape[:2] == mask.shape else np.ones(len(ids), bool)
    places = [folder]
    if not overrides:
        places.append(jaxformer.save_pretrained(folder / "again", model, params))
    for place in places:
        np.testing.assert_allclose(ours[real], theirs(place, opener, ids, mask)[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pad", [0, 1, 3, 20])
@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta"])
def test_the_positions_of_roberta_begin_after_its_padding_token(tmp_path, model_type, pad):
    assert_same(save(tmp_path, model_type, "AutoModelForMaskedLM", pad_token_id=pad), "AutoModelForMaskedLM")


WITH_HEAD = {
    "AutoModelForCausalLM": ("gpt2", "gpt_neox", "opt", "bloom", "llama", "mistral", "qwen2", "qwen3", "gemma"),
    "AutoModelForMaskedLM": ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "modernbert"),
    "AutoModelForSeq2SeqLM": ("t5", "mt5", "bart", "mbart", "marian", "pegasus"),
}
OUTPUTS = {"gpt_neox": "embed_out", "bert": "cls.predictions.decoder", "distilbert": "vocab_projector"}
OUTPUTS |= {"roberta": "lm_head.decoder", "xlm-roberta": "lm_head.decoder", "electra": "generator_lm_head"}
OUTPUTS |= {"albert": "predictions.decoder", "modernbert": "decoder"}


@pytest.mark.parametrize(("opener", "model_type"), [(o, m) for o, names in WITH_HEAD.items() for m in names])
def test_an_output_layer_that_config_json_calls_tied_is_kept_and_said(tmp_path, opener, model_type):
    import torch
    from safetensors.torch import load_file, save_file

    save(tmp_path, model_type, opener, tie_word_embeddings=True, **KEYS.get(model_type, {}))
    path, name = tmp_path / "model.safetensors", f"{OUTPUTS.get(model_type, 'lm_head')}.weight"
    tensors = load_file(path)
    table = next(array for key, array in tensors.items() if array.ndim == 2 and array.shape[0] == SMALL["vocab_size"])
    save_file(tensors | {name: table.clone()}, path, metadata={"format": "pt"})
    assert getattr(jaxformer, opener).from_pretrained(tmp_path)[0].config.tie_embeddings
    save_file(tensors | {name: torch.randn(table.shape)}, path, metadata={"format": "pt"})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert_same(tmp_path, opener)
    expected = [] if model_type in ("t5", "mt5") else ["output layer that differs from its embedding"]
    assert [w for w in said if "differs from its embedding" in str(w.message)] or not expected


YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 10}
LONG = {"rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": 10}
LONG |= {"short_factor": [1.0, 1.1, 1.3], "long_factor": [1.0, 2.0, 4.0]}
ROPES = {
    "yarn": YARN,
    "yarn_attention_factor": YARN | {"attention_factor": 1.7, "truncate": False, "beta_fast": 4.0, "beta_slow": 0.5},
    "yarn_mscale": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3},
    "longrope": LONG | {"factor": 4.0},
    "longrope_without_factor": LONG,
    "dynamic": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0},
}


@pytest.mark.parametrize("length", [9, 30], ids=["short", "long"])
@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mistral"])
def test_scaled_rotary_positions(tmp_path, model_type, name, length):
    keys = {**KEYS[model_type], "rope_parameters": ROPES[name], "hidden_size": 24, "head_dim": 6}
    keys |= {"max_position_embeddings": 10} if name == "dynamic" else {}
    # The file of a dynamic model says one length, from which on the base changes.
    more = {"max_length": 40} if name == "dynamic" and length > 10 else {}
    assert_same(save(tmp_path, model_type, "AutoModelForCausalLM", **keys), "AutoModelForCausalLM", length, **more)


BIASES = [("llama", "attention_bias"), ("llama", "mlp_bias"), ("qwen3", "attention_bias"), ("gemma", "attention_bias")]


@pytest.mark.parametrize(("model_type", "key"), [*BIASES, ("gpt_neox", "attention_bias")])
def test_biases_of_decoders(tmp_path, model_type, key):
    keys = {**KEYS[model_type], key: model_type != "gpt_neox"}
    assert_same(save(tmp_path, model_type, "AutoModelForCausalLM", **keys), "AutoModelForCausalLM")


@pytest.mark.parametrize("keys", [{"attention_bias": True}, {"mlp_bias": True}, {"num_hidden_layers": 1}], ids=str)
def test_modernbert(tmp_path, keys):
    keys = {**KEYS["modernbert"], **keys, "local_attention": 6, "global_attn_every_n_layers": 2}
    assert_same(save(tmp_path, "modernbert", "AutoModelForMaskedLM", **keys), "AutoModelForMaskedLM")


@pytest.mark.parametrize("first", [0, 1, 2, 5])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_a_window_in_the_upper_layers(tmp_path, model_type, first):
    keys = {**KEYS[model_type], "use_sliding_window": True, "sliding_window": 3, "max_window_layers": first}
    keys["num_hidden_layers"] = 3
    assert_same(save(tmp_path, model_type, "AutoModelForCausalLM", **keys), "AutoModelForCausalLM")
