"""Scores of a reward model in the Hugging Face format are those that PyTorch gives each text alone."""

import numpy as np
import pytest

from jaxformer.hub.tokenizer import AutoTokenizer
from jaxformer.training.rewards import Sample, open_reward
from tests.pipelines import tiny

pytestmark = pytest.mark.parity


def test_scores_of_padded_batches(tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = str(tiny.save(tmp_path, "number", "gpt2"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["the old mill", "rain fell over in by a river", "it", "Ann said it ran past hills " * 3]
    # The padding token inside of a text is a token like any other; at its end the token before it has the score.
    ids = [tokenizer(text)["input_ids"] for text in texts] + [[7, 1, 9], [5, 1]]
    score = open_reward(folder, tokenizer, batch_size=4)
    found = score([Sample({}, row[:-1], row[-1:], True, "", "") for row in ids])
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = [float(model(torch.tensor([row])).logits[0, 0]) for row in ids]
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
