"""Encoder-decoders whose sides have a configuration, and an earlier model, each."""

import numpy as np
import pytest
import yaml
from flax.traverse_util import flatten_dict

from jaxformer.hub import AutoModelForSeq2SeqLM
from jaxformer.schema import UserError
from jaxformer.training.config import config_keys, differing, dump_config, parse_config
from jaxformer.training.export import export
from jaxformer.training.loop import StopRequest, Trainer
from jaxformer.training.pretrained import read_params
from jaxformer.training.sources import resolve_config
from tests.hub.tiny import save
from tests.training.helpers import make_run, quiet, run_training, tiny_keys

SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_length": 16}
TWO = {"type": "encoder_decoder", **SIZES, "encoder": {"type": "roberta"}, "decoder": {"type": "gpt2", "num_layers": 1}}


def parsed(**model):
    return resolve_config({"model": {**TWO, **model}}, "the test")


def test_keys_beside_the_sides_are_those_of_both():
    model = parsed(max_length=24, encoder={"type": "roberta", "max_length": 32}).model
    assert (model.encoder.hidden_size, model.decoder.hidden_size, model.hidden_size) == (16, 16, 16)
    assert (model.encoder.num_layers, model.decoder.num_layers) == (2, 1)
    assert (model.encoder.max_length, model.decoder.max_length, model.max_length) == (32, 24, 32)
    assert (model.encoder.type, model.encoder.position_offset) == ("roberta", "after_pad")
    model = parsed(dtype="bfloat16").model
    assert model.encoder_side.dtype == model.decoder_side.dtype == "bfloat16"


def test_a_configuration_is_read_as_it_was_written():
    config = parsed(decoder={"type": "bert", "dropout": 0.3})
    text = dump_config(config)
    again = parse_config(yaml.safe_load(text), "the file")
    assert again == config
    assert "hidden_size" not in yaml.safe_load(text)["model"], "each side says its own"
    changed = yaml.safe_load(text)
    changed["model"]["decoder"]["num_layers"] = 3
    assert parse_config(changed, "the file").model.num_layers == 3, "the whole's is its decoder's"
    keys = {key for key, _ in differing(config).items() if key.startswith("model.")}
    assert {"model.encoder.hidden_size", "model.decoder.dropout"} <= keys
    assert not any(key.startswith("model.hidden") for key in keys)


def test_help_lists_the_keys_of_a_model_once():
    names = [name for name, _ in config_keys(type(parsed()))]
    assert "model.encoder" in names and "model.hidden_size" in names
    assert not any(name.startswith("model.encoder.") for name in names)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"encoder": {"typ": "bert"}}, "unknown key model.encoder.typ; did you mean model.encoder.type"),
        ({"encoder": {"type": "gpt2"}}, "model.encoder.type is 'gpt2', expected one of bert"),
        ({"decoder": {"type": "gpt_neox"}}, "model.decoder.type is 'gpt_neox', expected one of gpt2, bert"),
        ({"decoder": {"type": "bert", "num_heads": 5}}, "model.decoder: hidden_size is 16 and num_heads 5"),
        ({"encoder": "bert"}, "model.encoder is 'bert', expected keys of a model"),
        ({"type": "t5gemma"}, "model.encoder.type is 'roberta', expected one of gemma2, for model.type 't5gemma'"),
        ({"type": "bert", "encoder": {}, "decoder": None}, "encoder is given with architecture encoder, expected none"),
    ],
)
def test_what_does_not_go_together_is_one_line(model, message):
    with pytest.raises(UserError) as raised:
        parsed(**model)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    keys = tiny_keys(tmp_path_factory.mktemp("pretrained"), steps=2)
    keys["model"] |= {"type": "bert"}
    return run_training(keys).folder


def keys_of(folder, **sides):
    keys = tiny_keys(folder, steps=2)
    return keys | {"model": {"type": "encoder_decoder", **sides}, "task": {"type": "span_corruption"}}


@pytest.mark.slow
def test_both_sides_begin_with_an_earlier_run_and_the_result_is_exported(pretrained, tmp_path):
    side = {"pretrained": str(pretrained)}
    keys = keys_of(tmp_path, encoder=side, decoder=side)
    del keys["tokenizer"]
    display = quiet()
    run = make_run(keys)
    trainer = Trainer(run, display, StopRequest())
    before, after = read_params(pretrained), flatten_dict(trainer.state.params, sep="/")
    for name, array in after.items():
        _, _, own = name.partition("/")
        if own in before and before[own].shape == array.shape:
            np.testing.assert_array_equal(array, before[own])
        else:
            # The sentinels of the objective are new rows of the tables.
            assert "cross_attention" in name or "embedding" in name or name == "decoder/mlm_head/bias", name
    said = " ".join(display.console.file.getvalue().split())
    assert f"from {pretrained}" in said and "left there: encoder/mlm_head/" in said
    model = run.config.model
    assert model.encoder.vocab_size == model.decoder.vocab_size == model.vocab_size
    assert model.encoder.pad_token_id == model.pad_token_id
    folder = run_training(keys).folder
    export(folder, tmp_path / "hub")
    opened, params = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hub")
    assert opened.config.decoder_start_token_id is not None
    for name, array in read_params(folder).items():
        np.testing.assert_array_equal(flatten_dict(params, sep="/")[name], array)
    # And a run begins with the whole, of which keys beside the sides change both.
    again = keys_of(tmp_path) | {"model": {"pretrained": str(folder), "dropout": 0.0}}
    whole = resolve_config(again, "the test").model
    assert (whole.type, whole.encoder.dropout, whole.decoder.dropout) == ("encoder_decoder", 0.0, 0.0)


def test_a_side_has_the_sizes_of_its_earlier_model_and_no_other_type(tmp_path):
    side = {"pretrained": str(save(tmp_path / "bert", "bert", "masked_lm"))}
    keys = keys_of(tmp_path, encoder=side, decoder={**side, "num_layers": 2})
    del keys["tokenizer"]
    config = resolve_config(keys, "the test")
    assert (config.model.encoder.num_layers, config.model.decoder.num_layers) == (3, 2)
    assert (config.model.encoder.architecture, config.model.decoder.architecture) == ("encoder", "decoder")
    assert config.model.sources == {"encoder": side["pretrained"], "decoder": side["pretrained"]}
    assert config.tokenizer.path == side["pretrained"]
    with pytest.raises(UserError, match=r"model.encoder.type is 'roberta' and model.encoder.pretrained a 'bert'"):
        resolve_config(keys_of(tmp_path, encoder={**side, "type": "roberta"}), "the test")
