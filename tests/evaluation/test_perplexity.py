"""Perplexity and bits per byte, against a loop that reads the whole window for every token."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxformer
from jaxformer.cli import run
from jaxformer.evaluation.perplexity import perplexity
from jaxformer.schema import UserError
from tests.pipelines import tiny

TEXT = "the old mill stood by a river, it ran past hills. " * 12


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return jaxformer.pipeline(model=str(tiny.save(tmp_path_factory.mktemp("model"), "writes")))


def slow(pipe, text, length, stride):
    """The sum of ``-log p``, a forward pass for each token."""
    ids = [pipe.tokenizer.bos_token_id, *pipe.tokenizer(text, add_special_tokens=False)["input_ids"]]
    nats, read = 0.0, jax.jit(lambda row: pipe.model.apply({"params": pipe.params}, row).logits[0])
    for place in range(1, len(ids)):
        # The first window predicts `length` tokens, each later one `stride`.
        window = 0 if place <= length else -(-(place - length) // stride)
        end = min(len(ids), length + 1 + window * stride)
        start = max(0, end - length - 1)
        # What follows the place changes nothing before it.
        logits = read(jnp.array([[*ids[start:place], *[0] * (length - place + start)]]))[place - start - 1]
        nats -= float(jax.nn.log_softmax(logits.astype(jnp.float32))[ids[place]])
    return nats, len(ids) - 1


@pytest.mark.parametrize("stride", [None, 16])
def test_it_is_that_of_a_slow_loop(pipe, stride):
    found = perplexity(pipe, [TEXT], stride)
    nats, tokens = slow(pipe, TEXT, 128, stride or 64)
    assert found.tokens == tokens and found.nats == pytest.approx(nats, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / len(TEXT.encode()), rel=1e-5)


def test_texts_are_read_each_by_itself_and_bytes_are_counted(pipe):
    texts = ["rain fell", "", "über the hills"]
    found, parts = perplexity(pipe, texts), [perplexity(pipe, [text]) for text in (texts[0], texts[2])]
    assert found.nats == pytest.approx(sum(part.nats for part in parts), rel=1e-6)
    assert (found.bytes, found.characters) == (9 + 15, 9 + 14)
    with pytest.raises(UserError, match="no token to predict"):
        perplexity(pipe, [""])


def test_the_command_prints_it(pipe, tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    assert run("evaluate", ["--model", pipe.name, "--text", str(file), "--stride", "16"]) == 0
    said = capsys.readouterr().out
    assert "bits per byte" in said and f"{perplexity(pipe, [TEXT], 16).perplexity:,.3f}" in said
    assert run("evaluate", ["--model", pipe.name, "--text", str(file), "--stride", "999"]) == 2
    assert "stride is 999, expected 1 to 128" in capsys.readouterr().err
    assert np.isfinite(perplexity(pipe, [TEXT]).perplexity)
