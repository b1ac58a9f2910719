"""Encoder-decoders that begin with two checkpoints, and what is refused of them."""

import json
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxformer
from jaxformer.families import encoder_decoder, get_family, over
from jaxformer.hub import AutoModelForSeq2SeqLM, EncoderDecoderModel, PretrainedWarning, save_pretrained
from jaxformer.hub.sides import split_overrides
from jaxformer.schema import UserError
from tests.hub.tiny import edit, make, save

IDS = jnp.array([[3, 4, 5, 6], [7, 8, 9, 0]])
MASK = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0]])
TARGET = jnp.array([[1, 5, 6], [1, 7, 8]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """BERT with its language-model head and a GPT-2 of another width, saved."""
    folder = tmp_path_factory.mktemp("sides")
    save(folder / "bert", "bert", "masked_lm")
    save(folder / "gpt2", "gpt2", "causal_lm", hidden_size=12, bos_token_id=1, eos_token_id=2)
    save(folder / "llama", "llama", "causal_lm")
    return folder


def started(folders, decoder, **options):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = EncoderDecoderModel.from_encoder_decoder_pretrained(folders / "bert", folders / decoder, **options)
    return *found, [str(warning.message) for warning in said if warning.category is PretrainedWarning]


@pytest.mark.parametrize("decoder", ["gpt2", "bert"])
def test_the_weights_of_both_sides_are_taken_and_the_rest_is_new(folders, decoder):
    ids = {"decoder_start_token_id": 1} if decoder == "bert" else {}
    _, params, said = started(folders, decoder, seed=3, **ids)
    flat = flatten_dict(params, sep="/")
    kind, keys = ("masked_lm", {}) if decoder == "bert" else ("causal_lm", {"hidden_size": 12})
    theirs = {"encoder": make("bert", "masked_lm")[1], "decoder": make(decoder, kind, **keys)[1]}
    for side, tree in theirs.items():
        taken = {f"{side}/{name}": leaf for name, leaf in flatten_dict(tree, sep="/").items()}
        if side == "encoder":
            taken = {name: leaf for name, leaf in taken.items() if "mlm_head" not in name}
        for name, leaf in taken.items():
            np.testing.assert_array_equal(flat.pop(name), leaf)
    projected = {"context_projection/kernel", "context_projection/bias"} if decoder == "gpt2" else set()
    assert {name for name in flat if "cross_attention" not in name} == projected
    assert any(all(name in line for name in flat) and "newly initialised" in line for line in said)
    again = flatten_dict(started(folders, decoder, seed=3, **ids)[1], sep="/")
    other = flatten_dict(started(folders, decoder, seed=4, **ids)[1], sep="/")
    name = "decoder/layers/cross_attention/query/kernel"
    np.testing.assert_array_equal(flat[name], again[name])
    assert not np.array_equal(flat[name], other[name])


def test_it_is_saved_opened_and_writes(folders, tmp_path):
    model, params, _ = started(folders, "gpt2", encoder_dropout=0.3, dropout=0.2)
    c = model.config
    assert (c.encoder.dropout, c.decoder.dropout) == (0.3, 0.2)
    assert (c.decoder_start_token_id, c.end_ids) == (1, (2,))
    save_pretrained(tmp_path / "two", model, params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened, read = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "two", dropout=0.1)
    assert (opened.config.encoder.dropout, opened.config.decoder.dropout) == (0.1, 0.1)
    batch = {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": TARGET}
    first, second = (m.apply({"params": p}, **batch).logits for m, p in ((model, params), (opened, read)))
    np.testing.assert_array_equal(first, second)
    out = jaxformer.generate(opened, read, IDS, MASK, max_new_tokens=4, num_beams=2, pad_token_id=0)
    assert out.tokens.shape == (2, 4)


def test_what_cannot_be_a_side_is_refused(folders):
    with pytest.raises(UserError, match=r"^model.encoder.type is 'gpt2', expected one of bert, .*'encoder_decoder'$"):
        EncoderDecoderModel.from_encoder_decoder_pretrained(folders / "gpt2", folders / "bert")
    with pytest.raises(UserError, match=r"^model.decoder.type is 'llama', expected one of gpt2, bert"):
        EncoderDecoderModel.from_encoder_decoder_pretrained(folders / "bert", folders / "llama")


@pytest.mark.parametrize(
    ("side", "keys", "message"),
    [
        (None, {"tie_encoder_decoder": True}, "config.json has tie_encoder_decoder: True, expected False"),
        (None, {"decoder": None}, "config.json has decoder: None, expected the configuration of the decoder"),
        ("decoder", {"add_cross_attention": False}, "config.json has a decoder without add_cross_attention"),
        ("decoder", {"model_type": "gpt_neo"}, "the decoder is a gpt_neo, which cannot read an encoder's states"),
        ("decoder", {"cross_attention_hidden_size": 8}, "config.json has cross_attention_hidden_size: 8, expected"),
        ("encoder", {"is_decoder": True}, "config.json has a bert as encoder, which is decoder; expected an encoder"),
        ("encoder", {"model_type": "x"}, "config.json has model_type: 'x', expected one of"),
    ],
)
def test_a_variant_that_is_not_supported_is_refused(folders, tmp_path, side, keys, message):
    model, params, _ = started(folders, "gpt2")
    folder = save_pretrained(tmp_path, model, params)
    hf = json.loads((folder / "config.json").read_text())
    edit(folder, **(keys if side is None else {side: hf[side] | keys}))
    with pytest.raises(UserError, match=f"^{message}"):
        AutoModelForSeq2SeqLM.from_pretrained(folder)


def test_what_the_format_cannot_say_is_not_written(folders, tmp_path):
    model, params, _ = started(folders, "gpt2")
    c = model.config
    for changes, message in (
        ({"project_context": False}, "model.project_context is False, which"),
        ({"encoder": c.encoder.model_copy(update={"window": 3})}, "model.encoder.window is 3, which"),
        ({"decoder": c.decoder.model_copy(update={"score_softcap": 3.0})}, "model.decoder.score_softcap is 3.0, which"),
    ):
        with pytest.raises(UserError, match=f"^{message}"):
            save_pretrained(tmp_path, model.clone(config=c.model_copy(update=changes)), params)


def test_keys_belong_to_the_whole_to_a_side_or_to_both():
    given = {"decoder_start_token_id": 5, "decoder_dropout": 0.1, "dropout": 0.2, "encoder_num_layers": 1}
    assert split_overrides(given) == (
        {"decoder_start_token_id": 5},
        {"encoder": {"dropout": 0.2, "num_layers": 1}, "decoder": {"dropout": 0.1}},
    )
    keys = get_family("encoder_decoder").defaults
    laid = over(keys, {"dropout": 0.3, "dtype": "bfloat16", "decoder": {"num_layers": 1}})
    assert laid["encoder"] == {"type": "bert", "dropout": 0.3}
    assert laid["decoder"] == {"type": "bert", "dropout": 0.3, "num_layers": 1}
    assert laid["dtype"] == "bfloat16" and "dtype" not in laid["encoder"]


def test_the_ids_of_a_target_are_its_decoders_where_the_whole_has_none():
    ids = {"bos_token_id": 3, "eos_token_id": 4, "decoder_start_token_id": None}
    assert encoder_decoder.token_ids({}, ids) == ids | {"decoder_start_token_id": 3}
    assert encoder_decoder.token_ids({"eos_token_id": 7, "decoder_start_token_id": 9}, ids) == {"bos_token_id": 3}
