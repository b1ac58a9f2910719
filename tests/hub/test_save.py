"""Writing models: what is in the folder, and what the format cannot say."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxformer.hub as hub
from jaxformer.hub.kinds import build, kind_of
from jaxformer.models.transformer import Encoder
from jaxformer.schema import UserError
from tests.hub import tiny
from tests.models.tiny import config_of, random_params


def test_the_files_of_a_classifier(tmp_path):
    model, params = tiny.make("bert", "sequence_classification", labels=("bad", "good"))
    folder = hub.save_pretrained(
        tmp_path / "reviews", model, params, metrics={"accuracy": 0.875}, card={"license": "mit"}
    )
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"] and config["model_type"] == "bert"
    assert config["id2label"] == {"0": "bad", "1": "good"} and config["label2id"] == {"bad": 0, "good": 1}
    assert config["dtype"] == "float32"
    card = (folder / "README.md").read_text()
    assert "license: mit" in card and "| accuracy | 0.875 |" in card and "AutoModelForSequenceClassification" in card
    assert "name: reviews" in card, "the metrics stand in the card's head too"


def test_a_model_that_writes_has_its_token_ids(tmp_path):
    model, params = tiny.make("t5", "seq2seq_lm", pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    folder = hub.save_pretrained(tmp_path, model, params)
    ids = json.loads((folder / "generation_config.json").read_text())
    assert ids == {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    again, _ = hub.AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert (again.config.pad_token_id, again.config.eos_token_id, again.config.decoder_start_token_id) == (0, 1, 0)


def test_a_tied_head_is_written_once_and_another_as_it_is(tmp_path):
    for tied in (True, False):
        model, params = tiny.make("gpt2", "causal_lm", tie_embeddings=tied)
        names = load_file(hub.save_pretrained(tmp_path, model, params) / "model.safetensors")
        assert ("lm_head.weight" in names) != tied
        assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is tied


def test_half_the_bytes(tmp_path):
    model, params = tiny.make("gpt2", "causal_lm")
    folder = hub.save_pretrained(tmp_path, model, params, dtype="bfloat16")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    _, read = hub.AutoModelForCausalLM.from_pretrained(folder)
    table = params["embeddings"]["token"]["embedding"]
    np.testing.assert_array_equal(
        read["embeddings"]["token"]["embedding"], table.astype(jnp.bfloat16).astype(jnp.float32)
    )


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        (
            "gpt2",
            {"positions": "rotary"},
            r"model\.positions is 'rotary', which the Hugging Face format of gpt2 cannot say",
        ),
        ("llama", {"window": 4}, r"model\.window is 4, which the Hugging Face format of llama cannot say"),
        ("gpt2", {"activation": "tanh"}, "the Hugging Face format has no activation 'tanh'"),
        ("llama", {"use_bias": True}, r"model\.use_bias is True"),
        ("albert", {}, r"model\.embedding_size is not set, expected a number"),
        ("electra", {"embedding_size": 8}, r"model\.embedding_size is 8 as hidden_size, for which"),
    ],
)
def test_what_the_format_cannot_say_is_refused_before_anything_is_written(tmp_path, family, keys, message):
    model, params = tiny.make(family, "masked_lm" if family in ("albert", "electra") else "causal_lm", **keys)
    with pytest.raises(UserError, match=message):
        hub.save_pretrained(tmp_path / "out", model, params)
    assert not (tmp_path / "out").exists()


def test_models_without_a_place_in_the_format(tmp_path):
    model, params = tiny.make("transformer", "seq2seq_lm")
    with pytest.raises(
        UserError, match=r"model\.type 'transformer' has no Hugging Face format; expected another family"
    ):
        hub.save_pretrained(tmp_path, model, params)
    with pytest.raises(UserError, match="Encoder is no model that the Hugging Face format knows"):
        kind_of(Encoder(model.config))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    model, params = tiny.make("gpt2", "causal_lm")
    with pytest.raises(UserError, match=r"cannot be made: .*; choose another folder"):
        hub.save_pretrained(tmp_path / "file" / "out", model, params)


def test_a_file_already_open_keeps_its_values(tmp_path):
    """Saving over the folder a model was read from."""
    folder = tiny.save(tmp_path, "bert", "masked_lm")
    model, params = hub.AutoModelForMaskedLM.from_pretrained(folder)
    hub.save_pretrained(folder, model, params)
    before, after = params, hub.AutoModelForMaskedLM.from_pretrained(folder)[1]
    np.testing.assert_array_equal(before["mlm_head"]["bias"], after["mlm_head"]["bias"])


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "modernbert", "modernbert_decoder", "gpt_neo"])
def test_a_model_of_fewer_layers_than_their_order_has_is_saved(family, tmp_path):
    """Of two blocks nobody can tell which of many would have no window; that of each block is kept."""
    model = build(config_of(family, num_layers=2, global_every=6, global_first=0), "body")
    hub.save_pretrained(tmp_path, model, random_params(model.config, model))
    again, _ = hub.AutoModel.from_pretrained(tmp_path)
    assert again.config.windowed_layers == model.config.windowed_layers == (False, True)
