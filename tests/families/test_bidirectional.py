"""Encoders and encoder-decoders against the golden files of PyTorch ``transformers``."""

import pytest

from tests.families.compare import assert_bidirectional_parity
from tests.golden import bidirectional
from tests.golden.make import load


@pytest.mark.parametrize("name", bidirectional.CASES)
def test_logits_loss_and_gradients_of_pytorch(name):
    assert_bidirectional_parity(name, load(name))
