import pytest

from jaxformer.families import FAMILIES
from tests.families.published import PUBLISHED

from_hf = FAMILIES["gemma"].from_hf

HF = next(published.hf for published in PUBLISHED if published.family == "gemma")


@pytest.mark.parametrize(
    "keys",
    [
        {"hidden_act": "gelu"},
        {"hidden_act": "gelu", "hidden_activation": None},
        {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
        {"hidden_act": "gelu_pytorch_tanh"},
    ],
    ids=str,
)
def test_every_spelling_of_its_activation_is_the_formula_with_tanh(keys):
    hf = {key: value for key, value in HF.items() if key not in ("hidden_act", "hidden_activation")}
    assert from_hf({**hf, **keys})["activation"] == "gelu_tanh"
