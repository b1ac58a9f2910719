from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxformer
from jaxformer import functional as F
from jaxformer.families import build_model, model_config
from jaxformer.generation import parse_options
from jaxformer.models import TransformerConfig
from jaxformer.tasks import Seq2Seq, Seq2SeqConfig
from tests.tasks.tiny import PAD, SEP, TWO_SIDED, random_params

DATA = [{"source": "ab", "target": "cde"}, {"source": "f", "target": "ghijklm"}]


def make(start="pad", **settings):
    return Seq2Seq(
        Seq2SeqConfig(target_length=5, **settings), TWO_SIDED, 6, "encoder_decoder", start, train_records=DATA
    )


class Model(nn.Module):
    """Scores the next token by the one before it and the sum over the source."""

    config: TransformerConfig = TransformerConfig(architecture="encoder_decoder")

    @nn.compact
    def hidden_and_head(
        self, input_ids, attention_mask, decoder_input_ids, deterministic=True
    ) -> tuple[Any, F.HeadWeights]:
        table = self.param("table", nn.initializers.normal(1.0), (259, 4))
        source = jnp.sum(table[input_ids] * attention_mask[..., None], axis=1, keepdims=True)
        kernel = self.param("kernel", nn.initializers.normal(1.0), (4, 259))
        return table[decoder_input_ids] + source, F.HeadWeights(kernel)


def test_inputs_and_labels_by_hand():
    task = make(prefix="> ")
    batch = task.rows(DATA).take(np.arange(3))
    assert batch["input_ids"].tolist() == [[62, 32, 97, 98, SEP, PAD], [62, 32, 102, SEP, PAD, PAD], [PAD] * 6]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [0] * 6]
    assert batch["labels"].tolist() == [[99, 100, 101, SEP, -100], [103, 104, 105, 106, SEP], [-100] * 5]
    assert batch["decoder_input_ids"].tolist() == [[PAD, 99, 100, 101, PAD], [PAD, 103, 104, 105, 106], [PAD] * 5]
    assert task.config.texts(DATA[0]) == ["> ab", "cde"]


def test_a_long_source_keeps_its_end_token():
    batch = make(start="sep").rows([{"source": "abcdefgh", "target": ""}]).take(np.arange(1))
    assert batch["input_ids"].tolist() == [[97, 98, 99, 100, 101, SEP]]
    assert batch["labels"].tolist() == [[SEP, -100, -100, -100, -100]] and batch["decoder_input_ids"][0, 0] == SEP


def test_loss_equals_optax():
    task, model = make(label_smoothing=0.1, chunk_tokens=4), Model()
    batch = jax.tree.map(jnp.asarray, task.rows(DATA).take(np.arange(3)))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    params = model.init(jax.random.key(0), **inputs, method="hidden_and_head")["params"]
    sums = jax.jit(lambda b: task.loss(model, params, b, None))(batch)
    hidden, head = model.apply({"params": params}, **inputs, method="hidden_and_head")
    kept = batch["labels"] != -100
    one_hot = jax.nn.one_hot(jnp.where(kept, batch["labels"], 0), 259)
    logits = hidden @ head.kernel
    for name, smoothing in (("loss", 0.0), ("objective", 0.1)):
        losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, smoothing))
        np.testing.assert_allclose(sums.metrics[name], jnp.sum(losses * kept), rtol=1e-5)
    assert sums.weight == 9


def test_predictions_are_the_most_probable_tokens_one_by_one():
    keys = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_length": 8, "vocab_size": 259}
    model = build_model(TransformerConfig(**model_config({"type": "t5", **keys})))
    task = make()
    batch = jax.tree.map(jnp.asarray, task.rows(DATA).take(np.arange(3)))
    sources = {name: batch[name] for name in ("input_ids", "attention_mask")}
    params = random_params(model)
    tokens = jax.jit(lambda: task.predict(model, params, batch))()["tokens"]
    # Without a cache, the whole target anew for every token; what is not written yet is behind and changes nothing.
    best = jax.jit(lambda ids: model.apply({"params": params}, **sources, decoder_input_ids=ids).logits.argmax(-1))
    written = np.full((3, 6), PAD)
    for place in range(5):
        ended = np.any(written[:, 1 : place + 1] == SEP, axis=-1)
        written[:, place + 1] = np.where(ended, SEP, best(written)[:, place])
    np.testing.assert_array_equal(tokens, written[:, 1:])


def test_report():
    task = make(metrics=["bleu", "chrf", "rouge"])
    report = task.report(DATA, {"tokens": np.array([[99, 100, SEP, 7, PAD], [103, 104, 105, 106, PAD]])})
    assert report.predictions == [
        {"source": "ab", "target": "cde", "predicted": "cd"},
        {"source": "f", "target": "ghijklm", "predicted": "ghij"},
    ]
    assert set(report.metrics) == {"bleu", "chrf", "rouge1", "rouge2", "rougeL"}
    assert report.metrics["rouge1"] == 0
    assert "tok:13a" in report.notes["bleu"]


def test_targets_are_written_with_the_settings_of_the_model_and_of_the_run():
    keys = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_length": 8, "vocab_size": 259}
    of_file = {"num_beams": 3, "do_sample": True, "max_length": 142, "min_length": 56, "no_repeat_ngram_size": 1}
    config = TransformerConfig(**model_config({"type": "t5", **keys, "generation": of_file}))
    model, task = build_model(config), make(start="sep", prefix="> ")
    expected = {"num_beams": 3, "do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}
    settings = task.generation(config)
    assert expected.items() <= settings.items() and "max_length" not in settings and "min_length" not in settings
    assert (settings["decoder_start_token_id"], settings["eos_token_id"]) == (SEP, SEP)
    assert task.export_keys == {"prefix": "> "}
    batch = jax.tree.map(jnp.asarray, task.rows(DATA).take(np.arange(2)))
    params = random_params(model)
    tokens = np.asarray(jax.jit(lambda: task.predict(model, params, batch))()["tokens"])
    real = [
        row[keep == 1].tolist() for row, keep in zip(*(batch[n] for n in ("input_ids", "attention_mask")), strict=True)
    ]
    found = jaxformer.generate(model, params, real, config=parse_options(settings))
    np.testing.assert_array_equal(tokens, found.tokens)
    assert all(len(set(row)) == 5 for row in tokens.tolist()), "no token twice"
