"""Every family with every head against PyTorch ``transformers``, by the golden file."""

import functools

import pytest

from tests.golden import heads
from tests.hub.compare import differences

golden = functools.cache(heads.load)


def test_the_golden_file_has_every_family_and_head():
    assert list(golden()) == heads.cases()


# Every head of one family of each shape, every family's language model, and the heads that only one family has. The
# parity tests take all.
WHOLE = ("bert/", "gpt2/", "t5/", "bart/")
LANGUAGE_MODELS = ("/masked_lm", "/causal_lm", "/seq2seq_lm")
OWN = (
    "electra/pre_training",
    "electra/sequence_classification",
    "albert/pre_training",
    "roberta/sequence_classification",
    "distilbert/sequence_classification",
    "modernbert/sequence_classification",
    "modernbert/token_classification",
)
CASES = [c for c in heads.cases() if c.startswith(WHOLE) or c.endswith(LANGUAGE_MODELS) or c in OWN]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.default_cases(
    "bert/masked_lm",
    "bert/token_classification",
    "gpt2/body",
    "gpt2/question_answering",
    "t5/seq2seq_lm",
    "bart/sequence_classification",
    "llama/causal_lm",
    "electra/pre_training",
)
def test_outputs_loss_and_gradients_of_pytorch(case):
    outputs, loss, gradients = differences(case, golden()[case])
    assert outputs < 1e-4 and loss < 1e-4 and gradients < 1e-3
