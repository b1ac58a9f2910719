"""LoRA: nothing changes at first, sums equal updates beside the kernels, DoRA in float64, dropout, PEFT's files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from jaxformer import functional as F
from jaxformer.families import FAMILIES, model_config
from jaxformer.hub.kinds import abstract_params, build
from jaxformer.lora import (
    LoraConfig,
    adapt,
    find_targets,
    init_factors,
    merge,
    read_adapter,
    unmerge,
    untie,
    write_adapter,
)
from jaxformer.lora.factors import int8_kernels, to_int8
from jaxformer.models import TransformerConfig
from jaxformer.schema import UserError
from tests.families.state_dict import params_from_hf
from tests.golden import adapters, heads
from tests.hub.tiny import make

IDS = jnp.array([[3, 5, 7, 2, 9], [4, 4, 1, 8, 6]])


def randomise(tree, seed=0):
    """Factors far from their beginning."""
    random, flat = np.random.default_rng(seed), flatten_dict(tree, sep="/")
    drawn = {
        name: array * random.uniform(0.5, 1.5, array.shape)
        if name.endswith("magnitude")
        else random.normal(0, 0.3, array.shape)
        for name, array in flat.items()
    }
    return unflatten_dict({name: jnp.asarray(array, jnp.float32) for name, array in drawn.items()}, sep="/")


def logits(model, params):
    return jax.jit(lambda params: model.apply({"params": params}, IDS).logits)(params)


def close(got, expected, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, expected)


MODELS = {
    "llama": {"num_kv_heads": 1, "tie_embeddings": False},
    "t5": {},
    "bert": {},
    "albert": {"embedding_size": 6},
}
KINDS = {"t5": "seq2seq_lm", "bert": "sequence_classification", "albert": "masked_lm"}


@pytest.fixture(scope="module", params=MODELS)
def tiny(request):
    """A model, its parameters, factors of all its kernels, and the logits with them."""
    name = request.param
    # One loop over the layers compiles faster than three layers one by one.
    model, params = make(name, KINDS.get(name, "causal_lm"), unroll=1, num_layers=2, **MODELS[name])
    config = LoraConfig(rank=2, alpha=3, targets=["*"])
    factors = init_factors(jax.random.key(1), params, config)
    return model, params, config, factors


@pytest.mark.default_cases("bert", "t5")
def test_new_factors_change_nothing(tiny):
    model, params, config, factors = tiny
    np.testing.assert_array_equal(logits(model, adapt(params, factors, config)), logits(model, params))
    jax.tree.map(np.testing.assert_array_equal, merge(params, factors, config), params)
    bounds = {t.path: 1 / np.sqrt(np.prod(t.split[1])) for t in find_targets(params, config)}
    for name, array in flatten_dict(factors, sep="/").items():
        path, _, which = name.rpartition("/")
        assert np.abs(array).max() <= bounds[path] and (which == "b") == (not array.any())


@pytest.mark.default_cases("llama")
def test_beside_the_kernel_is_as_good_as_in_it(tiny):
    """Logits, and the gradients of the factors: by the product of three and through the sum."""
    model, params, config, factors = tiny
    factors = randomise(factors)

    def total(factors, way):
        return jnp.sum(jnp.sin(logits(model, way(params, factors, config))))

    ways = [jax.jit(jax.value_and_grad(lambda f, way=way: total(f, way)))(factors) for way in (adapt, merge)]
    close(*ways, tolerance=2e-4)
    assert abs(ways[0][0] - jnp.sum(jnp.sin(logits(model, params)))) > 1e-3
    merged = merge(params, factors, config)
    close(unmerge(merged, factors, config), params, tolerance=1e-6)


@pytest.mark.slow
def test_beside_int8_kernels_is_beside_what_they_stand_for(tiny):
    model, params, config, factors = tiny
    config = LoraConfig(**{**config.model_dump(), "base": "int8"})
    flat = flatten_dict(dict(params), sep="/")
    flat |= {target.path: to_int8(flat[target.path], target) for target in int8_kernels(params, config)}
    small = unflatten_dict(flat, sep="/")
    # What they stand for, as an ordinary model.
    whole = merge(small, factors, config)
    names = {name for name, leaf in flatten_dict(small, sep="/").items() if isinstance(leaf, F.Quantized)}
    kernels = {name for name in flatten_dict(params, sep="/") if name.endswith("/kernel")}
    assert names == {name for name in kernels if not name.startswith("lm_head")}
    assert not any(isinstance(leaf, F.Quantized) for leaf in flatten_dict(whole).values())
    flat, old = flatten_dict(whole, sep="/"), flatten_dict(params, sep="/")
    for target in int8_kernels(params, config):
        first = int(target.stacked)
        axes = tuple(range(first, first + target.inputs))
        step = np.abs(old[target.path]).max(axis=axes, keepdims=True) / 127
        assert np.all(np.abs(flat[target.path] - old[target.path]) <= step * 0.501), target.path
    # New factors change nothing.
    close(logits(model, adapt(small, factors, config)), logits(model, small), 1e-6)
    drawn = randomise(factors)

    @jax.jit
    def gradients(factors, small, whole):
        def total(factors, base):
            found = model.apply({"params": adapt(base, factors, config)}, IDS).logits
            return jnp.sum(jnp.sin(found)), found

        return [jax.grad(total, has_aux=True)(factors, base) for base in (small, whole)]

    (ours, found), (theirs, expected) = gradients(drawn, small, whole)
    close(ours, theirs, 2e-4)
    close(found, expected, 1e-4)
    close(found, logits(model, merge(small, drawn, config)), 1e-4)


def test_the_sum_in_float64():
    random = np.random.default_rng(0)
    W, A, B = random.normal(size=(2, 4, 3, 5)), random.normal(size=(2, 4, 2)), random.normal(size=(2, 2, 3, 5))
    config = LoraConfig(rank=2, alpha=5, rslora=True)
    params = {"layers": {"attention": {"query": {"kernel": jnp.asarray(W, jnp.float32)}}}}
    factors = {
        "layers": {
            "attention": {"query": {"kernel": {"a": jnp.asarray(A, jnp.float32), "b": jnp.asarray(B, jnp.float32)}}}
        }
    }
    expected = W + 5 / np.sqrt(2) * np.einsum("ldr,lrnh->ldnh", A, B)
    close(merge(params, factors, config)["layers"]["attention"]["query"]["kernel"], expected)
    m = random.uniform(1, 2, (2, 3, 5))
    factors["layers"]["attention"]["query"]["kernel"]["magnitude"] = jnp.asarray(m, jnp.float32)
    length = np.sqrt((expected**2).sum(axis=1, keepdims=True))
    close(merge(params, factors, config)["layers"]["attention"]["query"]["kernel"], m[:, None] * expected / length)
    with pytest.raises(UserError, match="merged with dora cannot be unmerged"):
        unmerge(params, factors, config)


def test_dora_begins_at_the_kernel():
    model, params = make("llama", "causal_lm")
    config = LoraConfig(rank=2, dora=True)
    factors = init_factors(jax.random.key(0), params, config)
    close(logits(model, adapt(params, factors, config)), logits(model, params))
    close(merge(params, factors, config), params)


def test_dropout_belongs_to_the_example_and_the_layer():
    model, params = make("llama", "causal_lm")
    config = LoraConfig(rank=2, dropout=0.5)
    factors = randomise(init_factors(jax.random.key(0), params, config))
    key = jax.random.key(7)

    @jax.jit
    def run(ids, examples):
        return model.apply({"params": adapt(params, factors, config, key, examples)}, ids).logits

    both = run(IDS, jnp.array([0, 1]))
    close(run(IDS[::-1], jnp.array([1, 0])), both[::-1])
    assert np.abs(run(IDS, jnp.array([2, 1]))[0] - both[0]).max() > 1e-3
    close(run(IDS, jnp.array([2, 1]))[1], both[1])
    assert np.abs(both - logits(model, adapt(params, factors, config))).max() > 1e-3
    keys = adapt(params, factors, config, key, jnp.arange(2))["layers"]["attention"]["query"]["kernel"].keys
    assert keys.shape == (3, 2) and len(np.unique(jax.random.key_data(keys).reshape(6, -1), axis=0)) == 6


def test_targets_by_pattern():
    _, params = make("t5", "seq2seq_lm")

    def found(*targets):
        return [t.path.removesuffix("/kernel") for t in find_targets(params, LoraConfig(targets=list(targets)))]

    assert found("value") == [
        "decoder/layers/attention/value",
        "decoder/layers/cross_attention/value",
        "encoder/layers/attention/value",
    ]
    assert found("encoder/layers/*/up") == ["encoder/layers/feed_forward/up"]
    assert len(found("*attention", "feed_forward")) == 12 + 4
    with pytest.raises(
        UserError, match=r"lora\.targets has 'q_proj', which matches no kernel; their names are like decoder/"
    ):
        found("q_proj")


def test_what_cannot_be_dropped_is_refused():
    with pytest.raises(ValueError, match=r"dora is given with dropout 0\.1, expected 0"):
        LoraConfig(dora=True, dropout=0.1)
    _, albert = make("albert", "masked_lm")
    with pytest.raises(UserError, match=r"lora.dropout is 0\.1 .* which all layers share"):
        find_targets(albert, LoraConfig(dropout=0.1))
    _, llama = make("llama", "causal_lm", tie_embeddings=False)
    with pytest.raises(UserError, match=r"lora.targets names lm_head/kernel, which the loss reads as a whole"):
        find_targets(llama, LoraConfig(dropout=0.1, targets=["lm_head"]))


GOLDEN = adapters.load()


def golden_model(name):
    """The model that PEFT adapted, and its parameters."""
    case = adapters.CASES[name][0]
    stored = heads.load()[case]
    family = FAMILIES[heads.FAMILIES[case.split("/")[0]][0]]
    config = TransformerConfig(**model_config(family.from_hf(stored["config"])))
    model = build(config, case.split("/")[1], num_labels=3)
    state = {key: heads.draw(key, tuple(shape)) for key, shape in stored["shapes"].items()}
    return model, params_from_hf(family.hub, config, case.split("/")[1], state, nn.unbox(abstract_params(model)))


@pytest.mark.parametrize("name", adapters.CASES)
@pytest.mark.default_cases("bert", "gpt2")
def test_adapters_of_peft(name, tmp_path):
    """Read, applied, written again, read again: PEFT's logits; and its gradients of the factors."""
    golden = GOLDEN[name]
    adapters.write(golden, tmp_path)
    model, params = golden_model(name)
    config, factors, whole = read_adapter(tmp_path, model)
    params = unflatten_dict({**flatten_dict(params), **flatten_dict(whole)})
    batch = adapters.inputs(adapters.CASES[name][0].split("/")[1])

    @jax.jit
    def run(factors):
        def total(factors):
            found = model.apply({"params": adapt(params, factors, config)}, **batch).logits
            return jnp.sum(jnp.sin(found)), found

        return jax.grad(total, has_aux=True)(factors)

    gradients, found = run(factors)
    close(found, golden["logits"], tolerance=1e-4)
    # Gradients in the layout of an adapter: what is written of them is what PEFT has, A of joined kernels summed.
    if name != "gpt2":
        write_adapter(tmp_path / "gradients", model, gradients, config)
        theirs = {
            "tensor/" + key.removeprefix("gradient/"): golden[key] for key in golden if key.startswith("gradient/")
        }
        adapters.write({"config": golden["config"], **theirs}, tmp_path)
        close(gradients, read_adapter(tmp_path, model)[1], tolerance=1e-3)
    write_adapter(tmp_path / "again", model, factors, config, whole=whole, base="somewhere")
    again, read, whole_again = read_adapter(tmp_path / "again", model)
    close(run(read)[1], golden["logits"], tolerance=1e-4)
    close(whole_again, whole)
    assert again.scale == config.scale or name == "gpt2"


def test_adapters_that_cannot_be_read(tmp_path):
    model, _ = golden_model("gpt2")
    with pytest.raises(UserError, match=r"has no adapter_config.json, expected the folder of an adapter"):
        read_adapter(tmp_path, model)
    adapters.write(GOLDEN["bert"], tmp_path)
    with pytest.raises(UserError, match="which is no linear layer of this gpt2 model"):
        read_adapter(tmp_path, model)
    adapters.write(GOLDEN["gpt2"], tmp_path)
    narrow = dataclasses.replace(model, config=model.config.model_copy(update={"hidden_size": 12}))
    with pytest.raises(UserError, match=r"of the adapter is 15 to .*, expected a kernel \[12"):
        read_adapter(tmp_path, narrow)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"bias": "none"', '"bias": "all"'))
    with pytest.raises(UserError, match="has bias: 'all', expected 'none'; this variant is not read"):
        read_adapter(tmp_path, model)
    path.write_text(path.read_text().replace('"LORA"', '"IA3"'))
    with pytest.raises(UserError, match="has peft_type: 'IA3', expected 'LORA'"):
        read_adapter(tmp_path, model)


def written(model, params, tmp_path, whole):
    """An adapter of query kernels with these parameters whole."""
    lora = LoraConfig(rank=2, targets=["query"])
    factors = randomise(init_factors(jax.random.key(0), params, lora))
    write_adapter(tmp_path, model, factors, lora, whole=unflatten_dict(whole, sep="/"))
    return tmp_path / "adapter_model.safetensors"


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_no_tensor_is_dropped(tmp_path):
    model, params = golden_model("gpt2")
    flat = flatten_dict(params, sep="/")
    scale = {"layers/attention_norm/scale": flat["layers/attention_norm/scale"] + 1}
    path = written(model, params, tmp_path, scale)
    close(flatten_dict(read_adapter(tmp_path, model)[2], sep="/"), scale)
    rewrite(path, lambda tensors: tensors.update({"base_model.model.transformer.h.0.ln_9.weight": np.zeros(15, "f")}))
    with pytest.raises(UserError, match=r"has transformer.h.0.ln_9.weight, which this gpt2 model does not have"):
        read_adapter(tmp_path, model)
    path = written(model, params, tmp_path, scale)
    rewrite(path, lambda tensors: tensors.pop("base_model.model.transformer.h.1.ln_1.weight"))
    with pytest.raises(UserError, match=r"has transformer.h.0.ln_1.weight and not transformer.h.1.ln_1.weight"):
        read_adapter(tmp_path, model)


def test_a_tied_output_layer_is_in_the_file_beside_its_embedding(tmp_path):
    model, params = golden_model("gpt2")
    table = params["embeddings"]["token"]["embedding"] * 2
    path = written(model, params, tmp_path, {"embeddings/token/embedding": table})
    assert '"ensure_weight_tying": true' in (tmp_path / "adapter_config.json").read_text()
    head = "base_model.model.lm_head.weight"
    np.testing.assert_array_equal(load_file(path)[head], table)
    close(read_adapter(tmp_path, model)[2], {"embeddings": {"token": {"embedding": table}}})
    rewrite(path, lambda tensors: tensors.update({head: tensors[head] + 1}))
    with pytest.raises(UserError, match=r"transformer.wte.weight and lm_head.weight apart, .* jaxformer.lora.untie"):
        read_adapter(tmp_path, model)
    apart, whole = untie(model, params)
    close(logits(apart, whole), logits(model, params))
    close(read_adapter(tmp_path, apart)[2]["lm_head"]["kernel"], table.T + 1)
    with pytest.raises(UserError, match="output layer is not tied to its embedding, expected one that is"):
        untie(apart, whole)


def test_half_a_tensor_is_not_written(tmp_path):
    model, params = golden_model("gpt2")
    half = {"layers/attention/key/bias": params["layers"]["attention"]["key"]["bias"]}
    with pytest.raises(UserError, match=r"layers/attention/key/bias was trained whole and layers/attention/query/bias"):
        written(model, params, tmp_path, half)
