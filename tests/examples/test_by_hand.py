"""The example's functions on a text of one sentence, against the library's own."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import functional as F
from jaxformer import generate
from jaxformer.families import build_model, model_config
from jaxformer.models import TransformerConfig
from jaxformer.tokenizers import TokenizerConfig, decode, encode, train_tokenizer

FILE = Path(__file__).parents[2] / "examples" / "by_hand.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("by_hand", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.LENGTH, module.BATCH = 16, 4
    return module


@pytest.fixture(scope="module")
def trained(example):
    tokenizer = train_tokenizer(TokenizerConfig(type="byte"), ["x"])
    tokens = np.array(encode(tokenizer, "the cat sat on the mat. " * 40))
    keys = {"type": "gpt2", "hidden_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 257, "max_length": 64}
    model = build_model(TransformerConfig(**model_config(keys)))
    start = model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    return model, start, example.train(model, start, tokens, steps=200), tokenizer, tokens


def test_it_learns(example, trained):
    model, start, params, _, tokens = trained
    before, after = (example.evaluate(model, p, tokens) for p in (start, params))
    assert before > 5.0 and after < 0.5


def test_the_evaluation_is_the_mean_over_whole_batches(example, trained):
    model, _, params, _, tokens = trained
    rows = np.stack([tokens[i : i + 17] for i in range(0, 64 * 14, 16)])  # 56 whole pieces, in batches of 4
    assert len(tokens) // 16 - 1 - len(rows) < 4
    loss = F.cross_entropy(model.apply({"params": params}, rows[:, :-1]).logits, jnp.asarray(rows[:, 1:]))
    np.testing.assert_allclose(example.evaluate(model, params, tokens), loss.total / loss.tokens, rtol=1e-5)


def test_it_goes_on_as_the_library_does(example, trained):
    model, _, params, tokenizer, _ = trained
    text = example.complete(model, params, tokenizer, "the cat", most=20, temperature=1e-6)
    ids = jnp.array([encode(tokenizer, "the cat")])
    expected = generate(model, params, ids, max_new_tokens=20, do_sample=False).tokens[0]
    assert text == "the cat" + decode(tokenizer, expected)
    assert text.startswith("the cat sat on the ")


def test_it_is_short():
    assert len(FILE.read_text().splitlines()) < 80
