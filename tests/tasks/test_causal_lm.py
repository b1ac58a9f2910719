import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxformer.families import build_model, model_config
from jaxformer.models import TransformerConfig
from jaxformer.tasks import CausalLM, CausalLMConfig
from tests.tasks.tiny import random_params

TASK = CausalLM(CausalLMConfig(), None, 8)


def test_features_of_a_packed_row_by_hand():
    rows = {
        "tokens": np.array([[5, 6, 9, 7, 8, 0]]),
        "segment_ids": np.array([[1, 1, 1, 2, 2, 0]]),
        "position_ids": np.array([[0, 1, 2, 0, 1, 0]]),
    }
    batch = TASK.features(rows, [], None)
    assert batch["input_ids"].tolist() == [[5, 6, 9, 7, 8]]
    assert batch["labels"].tolist() == [[6, 9, -100, 8, -100]], "no label across documents nor into padding"
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert rows["tokens"].tolist() == [[5, 6, 9, 7, 8, 0]], "the rows are not written to"


def test_features_of_a_stream_row_by_hand():
    rows = {"tokens": np.array([[5, 6, 7, 0]]), "valid": np.array([[True, True, True, False]])}
    assert TASK.features(rows, [], None)["labels"].tolist() == [[6, 7, -100]]
    assert set(TASK.features(rows, [], None)) == {"input_ids", "labels"}


def test_loss_equals_optax_on_the_models_logits():
    keys = {"vocab_size": 11, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "max_length": 8}
    model = build_model(TransformerConfig(**model_config(keys)))
    params = random_params(model)
    ids = jax.random.randint(jax.random.key(1), (3, 8), 0, 11)
    labels = jnp.where(ids % 3 == 0, -100, ids)
    task = CausalLM(CausalLMConfig(z_loss=0.01, chunk_tokens=5), None, 8)
    sums = jax.jit(lambda params: task.loss(model, params, {"input_ids": ids, "labels": labels}, None))(params)
    logits = jax.jit(model.apply)({"params": params}, ids).logits
    kept = labels != -100
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(kept, labels, 0))
    z = 0.01 * jax.nn.logsumexp(logits, axis=-1) ** 2
    np.testing.assert_allclose(sums.metrics["loss"], jnp.sum(nll * kept), rtol=1e-5)
    np.testing.assert_allclose(sums.objective, jnp.sum((nll + z) * kept), rtol=1e-5)
    np.testing.assert_allclose(sums.metrics["objective"], sums.objective)
    assert sums.weight == kept.sum()
