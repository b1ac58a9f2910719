"""Live against PyTorch ``transformers``: encoders and encoder-decoders, and the Transformer of 2017 in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.families import build_model, model_config
from jaxformer.models import TransformerConfig
from tests.families.compare import assert_bidirectional_parity
from tests.golden import REMADE, bidirectional
from tests.golden.make import load

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", [*bidirectional.CASES, *bidirectional.MORE])
def test_logits_loss_and_gradients(name):
    family = name if name in bidirectional.CASES or name == "mt5" else name.split("_")[0]
    assert_bidirectional_parity(family, bidirectional.make(name))


@pytest.mark.parametrize("name", bidirectional.CASES)
def test_the_golden_files_are_what_transformers_makes_now(name):
    stored, made = load(name), bidirectional.make(name)
    assert stored.keys() == made.keys()
    for key in stored.keys() - {"config"}:  # it names the version of transformers
        np.testing.assert_allclose(stored[key], made[key], rtol=REMADE, atol=REMADE / 10)


def test_the_transformer_of_2017_against_the_layers_of_pytorch():
    import torch
    from torch import nn as tnn

    D, N, V = 12, 3, 31
    torch.manual_seed(0)
    sizes = {"dropout": 0.0, "activation": "relu", "layer_norm_eps": 1e-6, "batch_first": True, "norm_first": False}
    encoder = tnn.TransformerEncoder(tnn.TransformerEncoderLayer(D, N, 20, **sizes), 2, enable_nested_tensor=False)
    decoder = tnn.TransformerDecoder(tnn.TransformerDecoderLayer(D, N, 20, **sizes), 2)
    table = tnn.Parameter(torch.randn(V, D) * 0.4)
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        tnn.init.normal_(parameter, 0.0, 0.4)
    random = np.random.default_rng(0)
    source, target = random.integers(0, V, (3, 7)), random.integers(0, V, (3, 6))
    real = np.arange(7)[None] < np.array([[7], [4], [6]])

    # Vaswani et al. 2017, section 3.5.
    places, pairs = np.arange(7)[:, None], np.arange(0, D, 2)[None]
    angles = places / 10_000.0 ** (pairs / D)
    waves = torch.tensor(np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(7, D), dtype=torch.float32)

    def embed(ids):
        return table[torch.tensor(ids)] * D**0.5 + waves[: ids.shape[1]]

    padding = torch.tensor(~real)
    memory = encoder(embed(source), src_key_padding_mask=padding)
    causal = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)
    hidden = decoder(embed(target), memory, tgt_mask=causal, memory_key_padding_mask=padding)
    logits = hidden @ table.T
    torch.sin(logits).sum().backward()

    keys = {"type": "transformer", "hidden_size": D, "num_heads": N, "intermediate_size": 20, "num_layers": 2}
    model = build_model(TransformerConfig(**model_config({**keys, "vocab_size": V, "max_length": 8, "dropout": 0.0})))

    def convert(part):
        """Parameters, or their gradients, under our names."""
        params = {"shared": {"embedding": part(table)}}
        for side, stack in (("encoder", encoder), ("decoder", decoder)):
            layers = [_layer(layer, part, D, N) for layer in stack.layers]
            params[side] = {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}
        return params

    def total(params):
        output = model.apply({"params": params}, jnp.asarray(source), jnp.asarray(real), jnp.asarray(target))
        return jnp.sum(jnp.sin(output.logits)), output.logits

    params = convert(lambda p: p.detach().numpy())
    (_, got), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    np.testing.assert_allclose(got, logits.detach().numpy(), rtol=1e-4, atol=1e-4)
    expected = convert(lambda p: p.grad.numpy())
    # To 1e-4 of a parameter's largest gradient: an entry is a sum over tokens, in which large terms cancel.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max(initial=1.0)), gradients, expected
    )


def _layer(layer, part, D, N):
    def norm(module):
        return {"scale": part(module.weight), "bias": part(module.bias)}

    def linear(module):
        return {"kernel": part(module.weight).T, "bias": part(module.bias)}

    def attention(module):
        kernels = np.split(part(module.in_proj_weight), 3)
        biases = np.split(part(module.in_proj_bias), 3)
        heads = {
            name: {"kernel": kernel.T.reshape(D, N, -1), "bias": bias.reshape(N, -1)}
            for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
        }
        output = {"kernel": part(module.out_proj.weight).T.reshape(N, -1, D), "bias": part(module.out_proj.bias)}
        return {**heads, "output": output}

    ours = {
        "attention": attention(layer.self_attn),
        "attention_norm": norm(layer.norm1),
        "feed_forward": {"up": linear(layer.linear1), "down": linear(layer.linear2)},
    }
    if not hasattr(layer, "multihead_attn"):
        return {**ours, "feed_forward_norm": norm(layer.norm2)}
    cross = {"cross_attention": attention(layer.multihead_attn), "cross_attention_norm": norm(layer.norm2)}
    return {**ours, **cross, "feed_forward_norm": norm(layer.norm3)}
