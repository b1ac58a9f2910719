"""The correctness contract on every family that differs, where the default tests hold it for most switches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.families import FAMILIES
from jaxformer.models.masked_lm import MaskedLM
from jaxformer.tasks import CausalLMConfig
from jaxformer.tasks.base import token_loss
from jaxformer.training.step import gradients_of_sum
from tests.models import test_contract as causal
from tests.models import test_contract_bidirectional as bidirectional
from tests.models.tiny import DISTINCT, config_of, random_params, tiny, tokens

pytestmark = pytest.mark.slow

DECODERS = [name for name in DISTINCT if FAMILIES[name].defaults.get("architecture", "decoder") == "decoder"]
OTHERS = [name for name in DISTINCT if name not in DECODERS]


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder(name):
    causal.test_padding_changes_no_real_token(name)
    causal.test_a_packed_row_is_its_documents_one_by_one(name)
    causal.test_changing_a_token_changes_no_output_before_it(name)
    causal.test_cached_decoding_is_the_full_forward_pass(name, "left")
    causal.test_poison_in_the_embedding_of_padding_stays_there(name)


@pytest.mark.parametrize("name", OTHERS)
def test_an_encoder_or_encoder_decoder(name):
    for side in ("left", "right"):
        bidirectional.test_padding_changes_no_real_token_no_loss_and_no_gradient(name, side)
    bidirectional.test_a_packed_row_is_its_examples_one_by_one(name)
    bidirectional.test_poison_in_the_embedding_of_padding_stays_there(name)
    if not bidirectional.is_encoder(name):
        bidirectional.test_changing_a_target_token_changes_no_output_before_it(name)
        bidirectional.test_cached_decoding_is_the_full_forward_pass(name)


class Objective:
    """Cross-entropy of the labels, as the objectives compute it."""

    joint = False
    config = CausalLMConfig()

    @staticmethod
    def loss(model, params, batch, dropout_key):
        return token_loss(model, params, batch, dropout_key, chunk_tokens=16)


# A part is a batch to every model; one each of a router's losses, shared layers, states, two sides.
@pytest.mark.parametrize("name", ["gpt2", "bert", "albert", "t5", "bart", "mixtral", "mamba", "deberta_v3"])
def test_accumulated_parts_are_the_whole_batch(name):
    """With dropout, and with labels spread unevenly over the rows."""
    config = config_of(name, dropout=0.2)
    encoder = config.architecture == "encoder"
    model = MaskedLM(config) if encoder else tiny(name, dropout=0.2)[0]
    params = random_params(config, model)
    ids = tokens(4, 6, seed=1)
    labels = jnp.where(jnp.arange(6)[None] < jnp.array([[6], [1], [0], [3]]), ids, -100)
    batch = {"input_ids": ids, "labels": labels}
    if config.architecture == "encoder_decoder":
        batch["decoder_input_ids"] = tokens(4, 6, seed=2)

    def run(accumulate):
        key = jax.random.key(0)
        return jax.jit(lambda: gradients_of_sum(model, Objective, params, batch, key, accumulate))()

    (gradient, sums), (expected_gradient, expected) = run(2), run(1)
    np.testing.assert_allclose(sums.objective, expected.objective, rtol=1e-5)
    assert float(sums.weight) == float(expected.weight) == 10
    bidirectional.assert_gradients_close(gradient, expected_gradient)
