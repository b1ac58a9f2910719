"""Attention weights, hidden states and ``inputs_embeds`` of every family and head, live against PyTorch."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.golden import heads
from tests.hub.compare import FAST, inputs, opened

pytestmark = pytest.mark.parity

LAYERS = (
    *("hidden_states", "attentions", "encoder_hidden_states", "encoder_attentions"),
    *("decoder_hidden_states", "decoder_attentions", "cross_attentions"),
)
TOLERANCE = 1e-5


def theirs(model, batch):
    """The layers of the PyTorch model, as NumPy arrays."""
    import torch

    tensors = {name: torch.tensor(np.asarray(array)) for name, array in batch.items()}
    with torch.no_grad():
        found = model(**tensors, output_attentions=True, output_hidden_states=True)
    arrays = {name: getattr(found, name, None) for name in LAYERS}
    # A model that cannot attend to another text has none of its cross-attentions, or an empty tuple.
    kept = {name: array for name, array in arrays.items() if array is not None and len(array)}
    length = batch["attention_mask"].shape[-1]
    return jax.tree.map(lambda tensor: whole(tensor.numpy(), length), kept)


def whole(weights, length):
    """Weights of LongT5's blocks, of the keys around each and of the summaries, as ``[B, N, T, T + G]``."""
    if weights.ndim != 5:
        return weights
    B, blocks, N, b, keys = weights.shape
    placed = np.zeros((B, N, blocks * b, (blocks + 2) * b))
    for i in range(blocks):
        placed[:, :, i * b : (i + 1) * b, i * b : (i + 3) * b] = weights[:, i, ..., : 3 * b]
    further = weights[..., 3 * b :].swapaxes(1, 2).reshape(B, N, blocks * b, keys - 3 * b)
    return np.concatenate([placed[:, :, :length, b : b + length], further[:, :, :length]], axis=-1)


def embedded(model, ids):
    """What PyTorch's own table gives for ids."""
    import torch

    with torch.no_grad():
        return model.get_input_embeddings()(torch.tensor(np.asarray(ids))).numpy()


def program(model, params):
    """Our model, which returns all of its layers."""
    given = model.config.mixer == "attention" and model.config.type != "big_bird"  # PyTorch's BigBird gives none
    asked = {"output_attentions": given, "output_hidden_states": True}
    return jax.jit(lambda batch: model.apply({"params": params}, **batch, **asked), compiler_options=FAST)


def assert_close(got, expected, real):
    """Arrays of real tokens, relative to the largest number."""
    got, expected = np.asarray(got)[real], expected[real]
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * max(1.0, np.abs(expected).max()))


def assert_same_layers(ours, expected, batch, attends=True):
    """Every array of every layer, of the queries that are real tokens; what PyTorch has not, ours has not."""
    if "hidden_states" in expected and getattr(ours, "decoder_hidden_states", None) is not None:
        # PyTorch's classifiers of T5Gemma give the decoder's layers alone, under other names.
        ours = SimpleNamespace(**{n: getattr(ours, f"decoder_{n}") for n in expected})
    source = np.asarray(batch["attention_mask"]).reshape(-1, batch["attention_mask"].shape[-1]) > 0
    for name in LAYERS:
        got = getattr(ours, name, None)
        if name not in expected:
            assert got is None, name
            continue
        assert len(got) == len(expected[name]), name
        if not attends and name == "hidden_states":
            # PyTorch's state spaces leave the embedding out and have the last block's output before and after the norm.
            assert_close(got[-1], expected[name][-1], source)
            got, expected[name] = got[1:-1], expected[name][:-2]
        for array, truth in zip(got, expected[name], strict=True):
            assert array.shape == truth.shape, name
            queries = truth.shape[2] if name.endswith("attentions") else truth.shape[1]
            real = source if queries == source.shape[1] else np.ones((len(source), queries), bool)
            if name.endswith("attentions"):
                array, truth = np.moveaxis(array, 1, 2), truth.swapaxes(1, 2)
            assert_close(array, truth, real)


@pytest.mark.parametrize("case", heads.cases())
def test_the_layers_are_those_of_pytorch(case, monkeypatch):
    kind, draw = case.split("/")[1], heads.draw
    # Weights so large that each shows in the loss make T5's unscaled scores a choice of one key, which rounding turns.
    monkeypatch.setattr(heads, "draw", lambda *args: draw(*args) * 0.5)
    hf = heads.torch_model(case)
    golden = {"config": hf.config.to_dict(), "shapes": {k: tuple(p.shape) for k, p in heads.parameters(hf).items()}}
    model, params = opened(case, golden)
    batch = inputs(model, kind, left=False)
    if model.config.architecture == "encoder_decoder" and kind in ("body", "question_answering"):
        batch["decoder_input_ids"] = batch["input_ids"]
    if model.config.type == "big_bird" and kind == "question_answering":
        batch["token_type_ids"] = np.zeros(batch["input_ids"].shape, int)  # else PyTorch makes types of its own
    run = program(model, params)
    ours = run(batch)
    attends = model.config.mixer == "attention"
    assert_same_layers(ours, theirs(hf, batch), batch, attends)

    if kind == "sequence_classification" and model.config.architecture == "encoder_decoder":
        return  # refused, here as in transformers: its end token is found by its id
    if model.config.type == "t5gemma" and kind == "token_classification":
        return  # refused without decoder inputs, which are made of ids
    if model.config.type == "clip_text":
        return  # there it reads ids alone
    embeds = dict(batch)
    for side in ("", "decoder_"):
        if f"{side}input_ids" in embeds:
            owner = hf.get_decoder() if side and model.config.type in ("t5gemma", "encoder_decoder") else hf
            embeds[f"{side}inputs_embeds"] = embedded(owner, embeds.pop(f"{side}input_ids"))
    # PyTorch's T5Gemma multiplies them by sqrt(D); here they stand for what its table gives after that, as in Gemma 2.
    scaled = model.config.type == "t5gemma"
    again = run({n: a * a.shape[-1] ** 0.5 if scaled and "embeds" in n else a for n, a in embeds.items()})
    assert_same_layers(again, theirs(hf, embeds), batch, attends)
    twice = model.config.type in ("marian", "pegasus")  # there and here the decoder scales what its table scaled
    for name in ("logits", "start_logits", "last_hidden_state"):
        if hasattr(ours, name) and not twice:
            assert_close(getattr(again, name), np.asarray(getattr(ours, name)), ...)
