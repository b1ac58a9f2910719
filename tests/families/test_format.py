import numpy as np
import pytest

from jaxformer.families import FAMILIES, build_model, get_family, model_config
from jaxformer.families.checkpoint import params_to_hf
from jaxformer.families.format import Format, Head, Name, read_activation, rows
from jaxformer.families.rotary import read_rotary
from jaxformer.models import TransformerConfig
from jaxformer.schema import UserError
from tests.families.state_dict import params_from_hf

CONFIG = TransformerConfig(vocab_size=2, num_layers=2, hidden_size=2, num_heads=1)
TABLE = [
    Name("table", "wte"),
    Name("layers/first/kernel", "h.{}.c", part=(0, 2)),
    Name("layers/second/kernel", "h.{}.c", part=(1, 2)),
    Name("layers/linear/kernel", "h.{}.fc.weight", transposed=True),
]


def toy(table):
    return Format("toy", (), table, {"body": Head("ToyModel")})


FORMAT = toy(TABLE)
STATE = {
    "wte": np.arange(4).reshape(2, 2),
    "h.0.c": np.array([[1, 2, 3, 4], [5, 6, 7, 8]]),
    "h.1.c": np.array([[10, 20, 30, 40], [50, 60, 70, 80]]),
    "h.0.fc.weight": np.array([[1, 2], [3, 4], [5, 6]]),  # [out, in]
    "h.1.fc.weight": np.array([[7, 8], [9, 10], [11, 12]]),
}
SHAPES = {
    "table": np.zeros((2, 2)),
    "layers": {
        "first": {"kernel": np.zeros((2, 2, 2))},
        "second": {"kernel": np.zeros((2, 2, 1, 2))},  # a layout with heads
        "linear": {"kernel": np.zeros((2, 2, 3))},
    },
}


def test_stacking_splitting_transposing_and_heads_by_hand():
    params = params_from_hf(FORMAT, CONFIG, "body", STATE, SHAPES)
    np.testing.assert_array_equal(params["table"], [[0, 1], [2, 3]])
    layers = params["layers"]
    np.testing.assert_array_equal(layers["first"]["kernel"], [[[1, 2], [5, 6]], [[10, 20], [50, 60]]])
    np.testing.assert_array_equal(layers["second"]["kernel"], [[[[3, 4]], [[7, 8]]], [[[30, 40]], [[70, 80]]]])
    np.testing.assert_array_equal(layers["linear"]["kernel"], [[[1, 3, 5], [2, 4, 6]], [[7, 9, 11], [8, 10, 12]]])
    assert params["table"].dtype == np.float32
    back = dict(params_to_hf(FORMAT, CONFIG, "body", params))
    assert back.keys() == STATE.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, STATE[name])


def test_groups_of_parts_by_hand():
    """Two heads of size 1 with query, key and value of a head together: [N, 3, H] on the output axis."""
    table = rows({"q+k+v": "qkv"}, "layers/", "h.{}.", groups=2)
    family = toy(table)
    kernel = np.array([[1, 2], [3, 4], [5, 6], [10, 20], [30, 40], [50, 60]])  # [out, in]
    state = {f"h.{i}.qkv.weight": kernel for i in range(2)} | {f"h.{i}.qkv.bias": kernel[:, 0] for i in range(2)}
    shapes = {"layers": {name: {"kernel": np.zeros((2, 2, 2, 1)), "bias": np.zeros((2, 2, 1))} for name in "qkv"}}
    layers = params_from_hf(family, CONFIG, "body", state, shapes)["layers"]
    for name, first, second in (("q", [1, 2], [10, 20]), ("k", [3, 4], [30, 40]), ("v", [5, 6], [50, 60])):
        for layer in range(2):
            np.testing.assert_array_equal(layers[name]["kernel"][layer, :, :, 0], np.array([first, second]).T)
            np.testing.assert_array_equal(layers[name]["bias"][layer], [[first[0]], [second[0]]])
    state["h.1.qkv.weight"] = kernel[:5]
    with pytest.raises(
        UserError, match=r"h\.1\.qkv\.weight of the checkpoint is \[5, 2\], expected \[6, 2\] for this config; check"
    ):
        params_from_hf(family, CONFIG, "body", state, shapes)


def test_the_last_word_of_a_path_says_what_a_layer_is():
    linear = [Name("a/b/kernel", "c.d.weight", transposed=True), Name("a/b/bias", "c.d.bias")]
    assert rows({"b": "d"}, "a/", "c.") == linear
    assert rows({"a/b": "c.d"}, transposed=False) == [linear[0]._replace(transposed=False), linear[1]]
    assert rows({"final_norm": "b"}) == [Name("final_norm/scale", "b.weight"), Name("final_norm/bias", "b.bias")]
    assert rows({"embeddings/token": "b"}) == [Name("embeddings/token/embedding", "b.weight")]


def test_a_missing_parameter_is_named():
    state = {name: array for name, array in STATE.items() if name != "h.1.c"}
    with pytest.raises(UserError, match=r"the checkpoint has no h\.1\.c, expected it for this config"):
        params_from_hf(FORMAT, CONFIG, "body", state, SHAPES)


def test_a_wrong_shape_is_named():
    with pytest.raises(UserError, match=r"wte of the checkpoint is \[3, 2\], expected \[2, 2\] for this config; check"):
        params_from_hf(FORMAT, CONFIG, "body", STATE | {"wte": np.zeros((3, 2))}, SHAPES)


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(UserError, match=r"model\.type is 'lama', expected one of gpt2, .*; did you mean llama\?"):
        get_family("lama")
    with pytest.raises(UserError, match=f"model.type is 'x', expected one of {', '.join(FAMILIES)}$"):
        model_config({"type": "x"})
    with pytest.raises(UserError, match=r"model\.type is 'gpt', expected"):
        build_model(TransformerConfig(type="gpt"))


def test_keys_go_over_the_defaults_of_their_family():
    keys = model_config({"type": "llama", "num_layers": 3})
    assert (keys["type"], keys["num_layers"], keys["positions"], keys["gated"]) == ("llama", 3, "rotary", True)
    assert model_config({})["type"] == "gpt2"


def test_sizes_of_the_familys_own_width_do_not_outlive_it():
    sizes = ("num_kv_heads", "head_size", "intermediate_size")
    own = model_config({"type": "llama", "num_layers": 2})
    assert [own[size] for size in sizes] == [8, 64, 8192]
    for keys in ({"hidden_size": 96}, {"num_heads": 4}):
        assert not set(sizes) & set(model_config({"type": "llama", **keys}))
    assert model_config({"type": "llama", "hidden_size": 96, "head_size": 8})["head_size"] == 8


@pytest.mark.parametrize("name", FAMILIES)
def test_swapping_the_family_is_one_override(name):
    config = TransformerConfig(**model_config({"type": name, "vocab_size": 10, "hidden_size": 96, "num_heads": 6}))
    assert (config.head_width, config.kv_heads) == (16, 6)


def test_an_unknown_activation_is_refused():
    with pytest.raises(UserError, match=r"config\.json has the activation 'mish', expected one of gelu, "):
        read_activation("mish")


def test_an_unknown_rotary_scaling_is_refused():
    with pytest.raises(UserError, match=r"config\.json has rope_type: 'ntk', expected default, linear, llama3, yarn, "):
        read_rotary({"rope_scaling": {"type": "ntk", "factor": 2.0}})
