"""Our model against what PyTorch made of the same parameters and the same batch."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import functional as F
from jaxformer.families import FAMILIES, model_config
from jaxformer.hub.kinds import abstract_params, build
from jaxformer.models import TransformerConfig
from tests.families.state_dict import params_from_hf


def part(golden, prefix):
    return {name.removeprefix(f"{prefix}/"): golden[name] for name in golden if name.startswith(f"{prefix}/")}


def bidirectional_model(family, golden):
    """Our model with the heads that the golden file's model has, and the conversion of its state dicts."""
    if "batch/decoder_input_ids" in golden:
        kind = "seq2seq_lm"
    else:
        kind = "pre_training" if golden["logits"].ndim == 2 or "batch/pair_labels" in golden else "masked_lm"
    return model_and_converter(family, json.loads(str(golden["config"])), kind)


def assert_bidirectional_parity(family, golden):
    """Logits of real tokens, mean loss and every gradient of an encoder or encoder-decoder, to 1e-4."""
    model, convert = bidirectional_model(family, golden)
    batch = {name: jnp.asarray(array) for name, array in part(golden, "batch").items()}
    labels, pair_labels = batch.pop("labels"), batch.pop("pair_labels", None)

    def mean(logits, labels):
        loss = F.cross_entropy(logits, labels)
        return loss.total / loss.tokens

    def objective(params):
        output = model.apply({"params": params}, **batch)
        if output.logits.ndim == 2:
            return jnp.sum(jnp.sin(output.logits) * batch["attention_mask"]), output.logits
        pairs = 0.0 if pair_labels is None else mean(output.pair_logits, pair_labels)
        return mean(output.logits, labels) + pairs, output.logits

    params = convert(part(golden, "state"))
    (loss, logits), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    real = np.asarray(batch["attention_mask"]) == 1
    real = real if real.shape == logits.shape[:2] else np.ones(logits.shape[:2], bool)
    np.testing.assert_allclose(np.asarray(logits)[real], golden["logits"][real], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    expected = convert(part(golden, "gradient"))
    if not model.config.first_norm:  # theirs has no norm there, ours is not used and its gradient is zero
        scale = expected["layers"]["attention_norm"]["scale"]
        expected["layers"]["attention_norm"]["scale"] = scale.at[0].set(0.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradients, expected)


def model_and_converter(family, hf_config, kind="causal_lm"):
    """Our model for a Hugging Face ``config.json``, and the conversion of its state dicts."""
    config = TransformerConfig(**model_config(FAMILIES[family].from_hf(hf_config)))
    model = build(config, kind)
    shapes = nn.unbox(abstract_params(model))
    return model, lambda state_dict: params_from_hf(FAMILIES[family].hub, config, kind, state_dict, shapes)


def assert_parity(family, golden):
    """Logits of real tokens, mean loss and every gradient, to 1e-4."""
    state = part(golden, "state")
    model, convert = model_and_converter(family, json.loads(str(golden["config"])))
    batch = {name: jnp.asarray(array) for name, array in part(golden, "batch").items()}
    labels = jnp.pad(batch["labels"][:, 1:], ((0, 0), (0, 1)), constant_values=F.IGNORE)

    def mean_loss(params):
        output = model.apply({"params": params}, batch["input_ids"], batch["attention_mask"])
        loss = F.cross_entropy(output.logits, labels)
        return loss.total / loss.tokens, output.logits

    (loss, logits), gradients = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(convert(state))
    real = np.asarray(batch["attention_mask"]) == 1
    np.testing.assert_allclose(np.asarray(logits)[real], golden["logits"][real], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    # A gradient has the names and the layout of its parameter.
    expected = convert(part(golden, "gradient"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradients, expected)
