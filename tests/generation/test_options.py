"""Options: settings of files, lengths that count the prompt, and the rules that were worked out by hand."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxformer.hub as hub
from jaxformer import functional as F
from jaxformer.functional.mask import MASKED
from jaxformer.generation import GenerationConfig, SettingsWarning, generate, read_settings
from jaxformer.models import TransformerConfig
from jaxformer.schema import UserError
from tests.hub import tiny as files
from tests.models.tiny import tiny


def test_settings_as_files_have_them():
    settings = {
        "eos_token_id": [2, -1, 7],
        "pad_token_id": -1,
        "bos_token_id": None,
        "forced_eos_token_id": [3],
        "do_sample": False,
        "temperature": 0.0,
        "top_p": 0.0,
        "top_k": 0,
        "use_cache": True,
        "guidance_scale": 1,
        "max_length": 20,
        "max_new_tokens": 5,
        "min_length": 3,
        "renormalize_logits": False,
    }
    assert read_settings(settings, "a file") == {
        "eos_token_id": [2, 7],
        "forced_eos_token_id": [3],
        "do_sample": False,
        "temperature": 0.0,
        "top_p": 0.0,
        "max_new_tokens": 5,
        "min_length": 3,
    }


def test_a_setting_that_is_not_known_is_said():
    with pytest.warns(SettingsWarning, match=r"a file has epsilon_cutoff: 0\.1, of_its_own: \[1\], which is not known"):
        assert read_settings({"epsilon_cutoff": 0.1, "of_its_own": [1], "eta_cutoff": 0.0}, "a file") == {}


def test_an_error_names_the_file():
    with pytest.raises(UserError, match=r"generation_config.json of x: top_p: .*less than or equal to 1, got 1.5"):
        read_settings({"top_p": 1.5}, "generation_config.json of x")


def test_lengths_count_what_is_before():
    chosen = GenerationConfig(max_length=10, min_length=8).after(7)
    assert (chosen.max_new_tokens, chosen.min_new_tokens, chosen.max_length) == (3, 1, None)
    chosen = GenerationConfig(max_length=10, max_new_tokens=6).after(7)
    assert chosen.max_new_tokens == 6, "of two limits the number of new tokens counts"
    model, params = tiny("gpt2")
    assert generate(model, params, [[1, 2, 3]], eos_token_id=(), max_length=8).lengths.tolist() == [5]


def test_several_ends_of_the_model_end_a_text():
    model, params = tiny("gpt2")
    text = generate(model, params, [[1, 2, 3]], max_new_tokens=8, eos_token_id=()).tokens[0].tolist()
    ends = (text[5], text[3])
    first = min(text.index(end) for end in ends) + 1
    for keys in ({"eos_token_id": ends}, {"eos_token_id": 28, "generation": {"eos_token_id": list(ends)}}):
        config = TransformerConfig(**model.config.model_dump() | keys)
        out = generate(model.clone(config=config), params, [[1, 2, 3]], max_new_tokens=8)
        assert (out.lengths[0], out.finish_reasons) == (first, ["stop"])


def test_biases_by_hand():
    tokens = jnp.array([[1, 2, 0], [4, 1, 0]])
    got = F.bias_sequences(jnp.zeros((2, 5)), tokens, 2, [((3,), 1.5), ((1, 2, 4), 2.0), ((1, 4), -1.0), ((3,), 0.5)])
    np.testing.assert_array_equal(got, [[0, 0, 0, 2.0, 2.0], [0, 0, 0, 2.0, -1.0]])


def test_decay_by_hand():
    logits, ends = jnp.array([[2.0, -2.0, MASKED, 5.0]]), jnp.array([0, 1, 2])
    np.testing.assert_array_equal(F.length_decay(logits, ends, jnp.int32(0), 2.0), logits)
    # By transformers: |logit| (2^2 - 1) is added, and to nothing that cannot be written.
    np.testing.assert_allclose(F.length_decay(logits, ends, jnp.int32(2), 2.0), [[8.0, 4.0, MASKED, 5.0]])


def test_what_was_read_is_written_back(tmp_path):
    said = {"eos_token_id": [2, 7], "suppress_tokens": [3], "temperature": 0.5, "of_its_own": {"a": [1]}}
    folder = files.save(tmp_path / "first", "llama", "causal_lm")
    files.edit(folder, eos_token_id=[2, 7])
    (folder / "generation_config.json").write_text(json.dumps(said | {"transformers_version": "5.0.0"}))
    model, params = hub.AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.end_ids == (2, 7) and hash(model.config) == hash(model.config.model_copy())
    again = hub.save_pretrained(tmp_path / "again", model, params)
    kept = json.loads((again / "generation_config.json").read_text())
    assert {key: kept[key] for key in said} == said
    assert json.loads((again / "config.json").read_text())["eos_token_id"] == [2, 7]


def test_settings_in_config_json_count_where_there_is_no_other_file(tmp_path):
    folder = files.save(tmp_path / "old", "gpt2", "causal_lm")
    files.edit(folder, max_length=30, repetition_penalty=1.2)
    assert hub.AutoConfig.from_pretrained(folder).generation_settings.get("max_length") is None
    (folder / "generation_config.json").unlink()
    old = hub.AutoConfig.from_pretrained(folder).generation_settings
    assert old == {"max_length": 30, "repetition_penalty": 1.2}
    model, params = hub.AutoModelForCausalLM.from_pretrained(folder)
    again = hub.save_pretrained(tmp_path / "new", model, params)
    assert hub.AutoConfig.from_pretrained(again).generation_settings.items() >= old.items()
