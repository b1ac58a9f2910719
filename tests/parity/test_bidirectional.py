"""Live against PyTorch ``transformers``: encoders and encoder-decoders, and the Transformer of 2017 in PyTorch."""

import numpy as np
import pytest

from tests.families.compare import assert_bidirectional_parity
from tests.golden import bidirectional
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
        np.testing.assert_allclose(stored[key], made[key], rtol=1e-4, atol=1e-5)
