from jaxformer.families import FAMILIES
from tests.families.published import PUBLISHED

from_hf = FAMILIES["bloom"].from_hf

HF = next(published.hf for published in PUBLISHED if published.family == "bloom")


def test_the_names_of_its_sizes_changed_over_time():
    later = {"n_embed": "hidden_size", "n_layer": "num_hidden_layers", "num_attention_heads": "n_head"}
    assert from_hf({later.get(key, key): value for key, value in HF.items()}) == from_hf(HF)
