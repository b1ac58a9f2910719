"""Block-sparse attention against PyTorch: in evaluation, and in training with the same blocks chosen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from jaxformer import functional as F
from jaxformer.families import get_family
from jaxformer.families.checkpoint import ArrayWeights, params_to_hf, read_params
from jaxformer.hub.kinds import abstract_params, build
from jaxformer.hub.pretrained import describe
from tests.golden import heads

pytestmark = pytest.mark.parity

SIZE, RANDOM, T = 2, 2, 27
KEYS = {"block_size": SIZE, "num_random_blocks": RANDOM, "max_position_embeddings": 32, "layer_norm_eps": 1e-6}


def both(**changes):
    hf = heads.torch_model("big_bird/masked_lm", **KEYS, **changes)
    weights = ArrayWeights({key: p.detach().numpy() for key, p in heads.parameters(hf).items()})
    config = describe(hf.config.to_dict(), {"unroll": 1}).config
    model = build(config, "masked_lm")
    loaded = read_params(get_family("big_bird").hub, config, "masked_lm", weights, nn.unbox(abstract_params(model)))
    return hf, model, unflatten_dict(loaded.params, sep="/")


def batch():
    random = np.random.default_rng(0)
    ids = random.integers(3, heads.VOCABULARY - 1, (2, T))
    real = np.arange(T)[None] < np.array([[T], [19]])
    return ids, real, random.integers(3, heads.VOCABULARY - 1, (2, T))


@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_of_long_rows(training, monkeypatch):
    import torch

    hf, model, params = both(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ids, real, targets = batch()
    assert model.config.is_sparse(T)
    hf.train(training)
    if training:
        count = -(-T // SIZE)
        layers = [layer.attention.self for layer in hf.bert.encoder.layer]
        for number, attention in enumerate(layers):
            chosen = list(F.random_blocks(model.config.num_heads, count, RANDOM, number))
            monkeypatch.setattr(attention, "_bigbird_block_rand_mask_with_head", lambda *a, c=chosen, **k: c)
    given = torch.tensor(ids), torch.tensor(real.astype(np.int64))
    logits = hf(input_ids=given[0], attention_mask=given[1]).logits
    chosen = torch.log_softmax(logits, -1).gather(-1, torch.tensor(targets)[..., None])[..., 0]
    loss = -(chosen * torch.tensor(real)).sum() / real.sum()
    loss.backward()

    def ours(params):
        output = model.apply(
            {"params": params},
            jnp.asarray(ids),
            jnp.asarray(real),
            deterministic=not training,
            rngs={"dropout": jax.random.key(0)},
        )
        found = jnp.take_along_axis(jax.nn.log_softmax(output.logits), jnp.asarray(targets)[..., None], axis=-1)[..., 0]
        return -jnp.sum(found * real) / real.sum(), output.logits

    (value, got), gradients = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    np.testing.assert_allclose(np.asarray(got)[real], logits.detach().numpy()[real], atol=3e-5)
    assert float(value) == pytest.approx(float(loss), abs=1e-5)
    theirs = {key: p.grad for key, p in heads.parameters(hf).items() if p.grad is not None}
    back = dict(params_to_hf(get_family("big_bird").hub, model.config, "masked_lm", gradients))
    for key, gradient in theirs.items():
        np.testing.assert_allclose(back[key], gradient.numpy(), atol=2e-5, err_msg=key)
