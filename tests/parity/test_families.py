"""Live against PyTorch ``transformers``: every family's forward pass, loss, gradients and greedy generation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.families import FAMILIES, model_config
from jaxformer.families.format import TOKEN_IDS
from jaxformer.models import TransformerConfig, init_cache
from tests.families.compare import assert_parity, model_and_converter
from tests.families.published import PUBLISHED, resolved
from tests.golden import REMADE, make

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", [*make.CASES, *make.MORE_CASES])
def test_logits_loss_and_gradients(name):
    assert_parity((make.CASES | make.MORE_CASES)[name][0], make.make(name))


@pytest.mark.parametrize("name", make.CASES)
def test_the_golden_files_are_what_transformers_makes_now(name):
    stored, made = make.load(name), make.make(name)
    assert stored.keys() == made.keys()
    for key in stored.keys() - {"config"}:  # it names the version of transformers
        np.testing.assert_allclose(stored[key], made[key], rtol=REMADE, atol=REMADE / 10)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.hub)
def test_the_published_models_as_transformers_reads_them(published):
    import torch
    import transformers

    name = FAMILIES[published.family].hub.model_type
    keys = {key: value for key, value in published.hf.items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(name, **keys)
    with torch.device("meta"):
        opener = getattr(transformers, published.model_class)
        hf = opener.from_config(config) if hasattr(opener, "from_config") else opener(config)
    hf.tie_weights()
    parameters = [p for p in hf.parameters() if p.requires_grad]  # sinusoids are frozen parameters there
    if published.family == "marian":
        parameters.append(hf.final_logits_bias)  # trained, and a buffer there
    assert sum(parameter.numel() for parameter in parameters) + published.untied == published.parameters
    if published.untied:
        return  # version 5 writes such a head as tied and tells by the checkpoint
    # The published files are of transformers 4 and before; this is the same config as transformers 5 writes it.
    from_hf = FAMILIES[published.family].from_hf
    four, five = (TransformerConfig(**model_config(from_hf(keys))) for keys in (published.hf, config.to_dict()))
    # Version 5 also writes the ids of special tokens, at their defaults.
    assert resolved(four, frozenset(TOKEN_IDS)) == resolved(five, frozenset(TOKEN_IDS))


GENERATED = ("gpt2_tied", "llama_tied", "gpt_neox", "opt", "bloom", "mistral", "qwen3", "gemma")


@pytest.mark.parametrize("name", [*GENERATED, "mixtral", "qwen3_moe", "olmoe", "mamba", "mamba2"])
def test_greedy_generation_after_left_padded_prompts(name):
    import torch  # here, so that collecting this file needs no PyTorch

    family, keys = make.CASES[name]
    hf = make.hf_model(family, keys)
    hf.generation_config.eos_token_id = None
    batch = make.batch(keys["vocab_size"])
    ids = np.stack([batch["input_ids"][0, -7:], batch["input_ids"][2, -7:]])
    mask = np.ones_like(ids)
    mask[0, :3] = 0
    steps = 6
    expected = hf.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False, max_new_tokens=steps)[
        :, 7:
    ]

    model, convert = model_and_converter(family, hf.config.to_dict())
    params = convert({name: parameter.detach().numpy() for name, parameter in make.parameters(hf).items()})
    step = jax.jit(lambda params, cache, **new: model.apply({"params": params}, cache=cache, **new))
    new, got = {"input_ids": jnp.asarray(ids), "attention_mask": jnp.asarray(mask)}, []
    cache = init_cache(model.config, 2, 7 + steps)
    for _ in range(steps):
        output = step(params, cache, **new)
        cache, new = output.cache, {"input_ids": jnp.argmax(output.logits[:, -1:], axis=-1)}
        got.append(new["input_ids"][:, 0])
    np.testing.assert_array_equal(np.stack(got, axis=1), expected.numpy())
