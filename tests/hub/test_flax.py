"""Checkpoints that the Flax models of transformers 4 wrote, against the outputs of those models."""

import base64
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict

import jaxformer.hub as hub
from tests.golden import flax as golden

GOLDEN = golden.load()
AUTO = {
    "body": hub.AutoModel,
    "causal_lm": hub.AutoModelForCausalLM,
    "masked_lm": hub.AutoModelForMaskedLM,
    "pre_training": hub.AutoModelForPreTraining,
    "seq2seq_lm": hub.AutoModelForSeq2SeqLM,
    "sequence_classification": hub.AutoModelForSequenceClassification,
    "token_classification": hub.AutoModelForTokenClassification,
    "question_answering": hub.AutoModelForQuestionAnswering,
}


def arrays_of(case):
    """The checkpoint's arrays by their paths, as they were drawn."""
    kept = GOLDEN[case]["arrays"]
    return {path: np.asarray(golden.draw(case, path, shape, dtype)) for path, (dtype, *shape) in kept.items()}


def write_tree(case, folder):
    """The checkpoint as one file, written with Flax as transformers wrote it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GOLDEN[case]["config"]))
    (folder / "flax_model.msgpack").write_bytes(msgpack_serialize(unflatten_dict(arrays_of(case), sep="/")))
    return folder


def write_kept(case, folder):
    """The files themselves."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GOLDEN[case]["config"]))
    for name, content in GOLDEN[case]["files"].items():
        (folder / name).write_bytes(base64.b64decode(content))
    return folder


def opened(case, folder):
    """The model and its parameters: nothing is missing and nothing is left over."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", hub.PretrainedWarning)
        return AUTO[golden.CASES[case][1]].from_pretrained(folder)


@pytest.mark.parametrize("case", golden.CASES)
@pytest.mark.default_cases("albert", "bart", "bert_*", "gpt2_body", "llama", "t5")
def test_outputs_as_flax(case, tmp_path):
    model, params = opened(case, (write_kept if case in golden.KEPT else write_tree)(case, tmp_path / case))
    batch = golden.inputs(golden.CASES[case][1])
    output = jax.jit(model.apply)({"params": params}, **{key: jnp.asarray(value) for key, value in batch.items()})
    assert GOLDEN[case]["outputs"]
    for name, expected in GOLDEN[case]["outputs"].items():
        got = np.asarray(getattr(output, name), np.float32)
        if got.shape[:2] == batch["input_ids"].shape:  # what padding gives is nobody's business
            got, expected = got[batch["attention_mask"] == 1], np.asarray(expected)[batch["attention_mask"] == 1]
        np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", golden.KEPT)
def test_the_files_hold_what_is_drawn(case, tmp_path):
    """So that the cases whose files are not kept are written as they were."""
    kept = write_kept(case, tmp_path / "kept")
    found = golden.read_back(kept)
    expected = arrays_of(case)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        assert (found[path].dtype, found[path].shape) == (array.dtype, array.shape), path
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_what_the_kept_files_are():
    assert {case: len(GOLDEN[case]["files"]) for case in golden.KEPT} == {"bert_classes": 1, "gpt2": 4, "t5": 1}
    assert {kind for kind, *_ in GOLDEN["t5"]["arrays"].values()} == {"bfloat16"}
    assert "flax_model.msgpack.index.json" in GOLDEN["gpt2"]["files"]
