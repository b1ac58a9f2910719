"""The checks of a model pass on models that are right, and name the fault of one that is not."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import check
from jaxformer.check import failures, outcomes
from jaxformer.check.model import CHECKS, ModelSubject
from jaxformer.functional import attention, mask
from jaxformer.models import layers
from tests.models.tiny import EVERY_CONFIG, tiny

SOME = ("window", "bert", "t5", "experts", "mamba", "mamba2")


def subject(name):
    model, params = tiny(name)
    random = np.random.default_rng(1)
    texts = tuple(random.integers(0, 27, n) for n in (13, 9, 6))
    two_sided = model.config.architecture == "encoder_decoder"
    targets = tuple(random.integers(0, 27, n) for n in (11, 8, 7)) if two_sided else ()
    return ModelSubject(model, params, texts, targets)


def only(*names):
    return [check for check in CHECKS if check.name in names]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SOME else pytest.mark.slow) for name in EVERY_CONFIG]
)
def test_outputs_are_those_of_the_textbook(name):
    assert failures(list(outcomes(only("the textbook's formulas"), subject(name)))) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["window", "albert", "bart"])
def test_no_false_alarm(name):
    assert failures(list(outcomes(CHECKS, subject(name)))) == []


def test_a_lost_mask_is_named_with_the_token(monkeypatch):
    def blind(self, query_start, query_stop, key_start, key_stop):
        return jnp.ones((1, query_stop - query_start, key_stop - key_start), bool)

    monkeypatch.setattr(mask.Mask, "block", blind)
    (found,) = outcomes(only("causality and view"), subject("gpt2"))
    assert found.passed is False
    assert "last_hidden_state 0 depends on token 1" in found.place


def test_padding_in_the_embedding_is_named(monkeypatch):
    original = layers.Embeddings.__call__
    monkeypatch.setattr(
        layers.Embeddings,
        "__call__",
        lambda self, inputs, table=None: original(self, inputs._replace(attention_mask=None), table),
    )
    (found,) = outcomes(only("masked inf and nan"), subject("gpt2"))
    assert found.passed is False
    assert "nan" in found.place


def test_a_wrong_scale_is_named_by_the_textbook(monkeypatch):
    original = attention.attend
    monkeypatch.setattr(attention, "attend", lambda query, *args, **kwargs: original(query * 1.01, *args, **kwargs))
    (found,) = outcomes(only("the textbook's formulas"), subject("gpt2"))
    assert found.passed is False
    assert found.difference > found.tolerance


def test_bfloat16_has_the_bound_of_its_rounding():
    in_bfloat16 = subject("gpt2").switched(dtype="bfloat16")
    found = list(outcomes(only("padding on the left"), ModelSubject(**{**vars(in_bfloat16), "dtype": "bfloat16"})))
    assert found[0].passed is True
    assert found[0].tolerance > 1e-3


@pytest.mark.slow
def test_the_library_checks_a_model_and_its_use():
    model, params = tiny("gpt2")
    batch = {"input_ids": np.random.default_rng(0).integers(0, 29, (4, 12))}
    found = check.run(model, params, batch)
    assert failures(found) == []
    assert {"padding on the left", "written and read again", "generation is a row's own"} <= {o.name for o in found}
