"""What a ``config.json`` may say, live against PyTorch ``transformers``: opened there and here, and written back."""

import numpy as np
import pytest

import jaxformer

pytestmark = pytest.mark.parity

SMALL = {
    "vocab_size": 31,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 40,
}


def save(folder, model_type, opener, **keys):
    """Writes a random model of PyTorch and returns the folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, **keys})
    model = getattr(transformers, opener).from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def theirs(folder, opener, ids, mask):
    import torch
    import transformers

    model = getattr(transformers, opener).from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        output = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
    return np.asarray(output.logits if hasattr(output, "logits") else output.last_hidden_state)


def assert_same(folder, opener, length=12):
    """The outputs of real tokens are PyTorch's, and PyTorch's again of what we write."""
    model, params = getattr(jaxformer, opener).from_pretrained(folder)
    vocabulary = model.config.vocab_size
    pad = model.config.pad_token_id or 0
    ids = np.random.default_rng(0).integers(0, vocabulary, (3, length))
    ids = np.where(ids == pad, (pad + 1) % vocabulary, ids)
    mask = np.ones_like(ids)
    mask[1, length // 2 :] = 0
    ids[mask == 0] = pad
    output = model.apply({"params": params}, ids, mask)
    ours = np.asarray(output.logits if hasattr(output, "logits") else output.last_hidden_state)
    real = mask == 1 if ours.shape[:2] == mask.shape else np.ones(len(ids), bool)
    written = jaxformer.save_pretrained(folder / "again", model, params)
    for place in (folder, written):
        np.testing.assert_allclose(ours[real], theirs(place, opener, ids, mask)[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pad", [0, 1, 3, 20])
@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta"])
def test_the_positions_of_roberta_begin_after_its_padding_token(tmp_path, model_type, pad):
    assert_same(save(tmp_path, model_type, "AutoModelForMaskedLM", pad_token_id=pad), "AutoModelForMaskedLM")
