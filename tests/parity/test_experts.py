"""Live against PyTorch ``transformers``: the router's losses in training, and files with fused experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.hub import AutoModelForCausalLM
from jaxformer.tasks.base import token_loss
from tests.families.compare import model_and_converter
from tests.golden import make

pytestmark = pytest.mark.parity
NAMES = pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe"])


@NAMES
def test_loss_and_gradients_with_the_balance_loss(name):
    import torch

    family, keys = make.CASES[name]
    hf = make.hf_model(family, {**keys, "output_router_logits": True, "router_aux_loss_coef": 0.5})
    batch = make.batch(keys["vocab_size"])
    inputs = {key: torch.tensor(array) for key, array in batch.items()}
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    output = hf(**inputs)
    output.loss.backward()
    assert float(output.aux_loss) > 0.1

    model, convert = model_and_converter(family, hf.config.to_dict())
    assert model.config.balance_loss == 0.5
    state = {key: p.detach().numpy() for key, p in make.parameters(hf).items()}
    labels = np.pad(batch["labels"][:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    ours = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
    ours = {key: jnp.asarray(array) for key, array in ours.items()}

    def mean(params):
        sums = token_loss(model, params, ours, None, chunk_tokens=16)
        return sums.objective / sums.weight

    loss, gradients = jax.jit(jax.value_and_grad(mean))(convert(state))
    np.testing.assert_allclose(loss, float(output.loss), rtol=1e-5)
    expected = convert({key: p.grad.numpy() for key, p in make.parameters(hf).items()})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradients, expected)


@NAMES
@pytest.mark.parametrize("original", [True, False], ids=["one by one", "fused"])
def test_both_forms_of_files_are_read(name, original, tmp_path):
    family, keys = make.CASES[name]
    hf = make.hf_model(family, keys)
    hf.save_pretrained(tmp_path, save_original_format=original)
    model, params = AutoModelForCausalLM.from_pretrained(tmp_path)
    _, convert = model_and_converter(family, hf.config.to_dict())
    expected = convert({key: p.detach().numpy() for key, p in make.parameters(hf).items()})
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert model.config.num_experts in (3, 5)
