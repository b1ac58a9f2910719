"""Adapters live against the ``peft`` library: both read what the other wrote, and compute the same."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer.families import FAMILIES, model_config
from jaxformer.hub.kinds import abstract_params, build
from jaxformer.lora import LoraConfig, adapt, init_factors, merge, read_adapter, untie, write_adapter
from jaxformer.models import TransformerConfig
from jaxformer.schema import UserError
from tests.families.state_dict import params_from_hf
from tests.golden import REMADE, adapters, heads
from tests.lora.test_factors import randomise

pytestmark = pytest.mark.parity

# Case: modules of theirs that PEFT is told to adapt.
CASES = {
    "gpt2/causal_lm": ["c_attn", "c_proj", "c_fc"],
    "llama/causal_lm": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    "bert/sequence_classification": ["query", "value", "output.dense"],
    "t5/seq2seq_lm": ["q", "v", "o", "wi"],
    "gpt_neox/causal_lm": ["query_key_value", "dense"],
}
# Each also plain; ours and PEFT's settings.
VARIANTS = {
    "plain": ({}, {}),
    "rslora": ({"rslora": True}, {"use_rslora": True}),
    "dora": ({"dora": True}, {"use_dora": True}),
}
RUNS = [(case, "plain") for case in CASES] + [
    ("gpt2/causal_lm", "dora"),
    ("t5/seq2seq_lm", "dora"),
    ("llama/causal_lm", "rslora"),
]


def ours_of(case, torch_model):
    """Our model and its parameters."""
    name, kind = case.split("/")
    family = FAMILIES[heads.FAMILIES[name][0]]
    config = TransformerConfig(**model_config(family.from_hf(torch_model.config.to_dict())))
    model = build(config, kind, num_labels=3)
    state = {key: p.detach().numpy() for key, p in heads.parameters(torch_model).items()}
    return model, params_from_hf(family.hub, config, kind, state, nn.unbox(abstract_params(model)))


def logits_of(torch_model, kind):
    import torch

    with torch.no_grad():
        return torch_model(
            **{name: torch.tensor(array) for name, array in adapters.inputs(kind).items()}
        ).logits.numpy()


def ours(model, params, kind):
    return jax.jit(lambda p: model.apply({"params": p}, **adapters.inputs(kind)).logits)(params)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("case", "variant"), RUNS)
def test_what_peft_wrote_is_read(case, variant, tmp_path):
    import peft
    import torch

    torch.manual_seed(0)
    kind = case.split("/")[1]
    base = heads.torch_model(case)
    model, params = ours_of(case, base)
    saved = ["classifier"] if kind == "sequence_classification" else None
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=CASES[case],
        modules_to_save=saved,
        init_lora_weights=False,
        rank_pattern={CASES[case][0]: 3} if variant == "plain" else {},
        **VARIANTS[variant][1],
    )
    adapted = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name or (parameter.requires_grad and "lora" not in name):
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    adapted.save_pretrained(tmp_path)
    expected = logits_of(adapted, kind)

    lora, factors, whole = read_adapter(tmp_path, model)
    assert bool(whole) == bool(saved)
    frozen = unflatten_dict({**flatten_dict(params), **flatten_dict(whole)})
    close(ours(model, adapt(frozen, factors, lora), kind), expected)
    close(ours(model, merge(frozen, factors, lora), kind), expected)


@pytest.mark.parametrize(("case", "variant"), RUNS)
def test_peft_reads_what_was_written_here(case, variant, tmp_path):
    import peft

    kind = case.split("/")[1]
    base = heads.torch_model(case)
    model, params = ours_of(case, base)
    lora = LoraConfig(rank=3, alpha=5, targets=["query", "key", "value", "attention", "down"], **VARIANTS[variant][0])
    factors = randomise(init_factors(jax.random.key(0), params, lora))
    whole = {"classifier": jax.tree.map(lambda x: x + 0.3, params["classifier"])} if "classifier" in params else {}
    write_adapter(tmp_path, model, factors, lora, whole=whole, base="somewhere")
    expected = ours(model, adapt({**params, **whole}, factors, lora), kind)
    opened = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    close(logits_of(opened, kind), expected)
    close(logits_of(opened.merge_and_unload(), kind), expected)
    again, read, whole_again = read_adapter(tmp_path, model)
    close(ours(model, merge({**params, **whole_again}, read, again), kind), expected)


# Modules that PEFT trains whole beside factors; whether its embeddings stay tied, and whether ours must be untied.
WHOLE = [
    ("llama/causal_lm", ["q_proj"], ["down_proj"], False, False),
    ("llama/causal_lm", ["q_proj"], ["input_layernorm", "norm"], False, False),
    ("llama/causal_lm", ["q_proj"], ["embed_tokens", "lm_head"], False, False),
    ("llama/causal_lm", ["q_proj", "lm_head"], None, False, False),
    ("gpt2/causal_lm", ["c_proj"], ["c_attn", "ln_1"], False, False),
    ("gpt2/causal_lm", ["c_attn"], ["wte"], False, True),
    ("gpt2/causal_lm", ["c_attn"], ["lm_head"], False, True),
    ("gpt2/causal_lm", ["c_attn"], ["wte", "lm_head"], False, True),
    ("gpt2/causal_lm", ["c_attn"], ["wte", "lm_head"], True, False),
    ("gpt2/causal_lm", ["c_attn", "lm_head"], None, False, True),
    ("bert/sequence_classification", ["query"], ["classifier", "word_embeddings"], False, False),
    ("t5/seq2seq_lm", ["q"], ["wo", "layer_norm"], False, False),
    ("t5/seq2seq_lm", ["q"], ["lm_head"], False, True),
]
T5_TABLES = ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"]


@pytest.mark.parametrize(("case", "targets", "saved", "tied", "apart"), WHOLE)
def test_modules_that_peft_trained_whole_are_read(case, targets, saved, tied, apart, tmp_path):
    import peft
    import torch

    torch.manual_seed(0)
    kind = case.split("/")[1]
    base = heads.torch_model(case)
    model, params = ours_of(case, base)
    config = peft.LoraConfig(
        r=4, target_modules=targets, modules_to_save=saved, init_lora_weights=False, ensure_weight_tying=tied
    )
    adapted = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "lora" not in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    adapted.save_pretrained(tmp_path)
    if apart:
        with pytest.raises(UserError, match=r"expected an untied model: model, params = jaxformer.lora.untie"):
            read_adapter(tmp_path, model)
        model, params = untie(model, params)
    lora, factors, whole = read_adapter(tmp_path, model)
    assert whole
    frozen = unflatten_dict({**flatten_dict(params), **flatten_dict(whole)})
    close(ours(model, merge(frozen, factors, lora), kind), logits_of(adapted, kind))


def test_one_embedding_of_an_encoder_decoder_under_all_its_names(tmp_path):
    import peft
    import torch

    base = heads.torch_model("t5/seq2seq_lm")
    model, params = ours_of("t5/seq2seq_lm", base)
    config = peft.LoraConfig(r=4, target_modules=["q"], modules_to_save=T5_TABLES, init_lora_weights=False)
    adapted = peft.get_peft_model(base, config).eval()
    new = torch.rand(params["shared"]["embedding"].shape)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.copy_(new)
    adapted.save_pretrained(tmp_path)
    lora, factors, whole = read_adapter(tmp_path, model)
    close(whole["shared"]["embedding"], new.numpy())
    close(ours(model, merge({**params, **whole}, factors, lora), "seq2seq_lm"), logits_of(adapted, "seq2seq_lm"))
    with torch.no_grad():
        adapted.base_model.model.encoder.embed_tokens.modules_to_save["default"].weight.mul_(2)
    adapted.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"expected an adapter that holds the same embedding under all of its names"):
        read_adapter(tmp_path, model)


@pytest.mark.parametrize(
    ("case", "trained"),
    [
        ("gpt2/causal_lm", "embeddings/token"),
        ("gpt2/causal_lm", "layers/attention_norm"),
        ("llama/causal_lm", "lm_head"),
        ("llama/causal_lm", "layers/feed_forward/down"),
        ("t5/seq2seq_lm", "shared"),
    ],
)
def test_peft_reads_modules_that_were_trained_whole_here(case, trained, tmp_path):
    import peft

    kind = case.split("/")[1]
    base = heads.torch_model(case)
    model, params = ours_of(case, base)
    lora = LoraConfig(rank=3, alpha=5, targets=["query", "key", "value"])
    factors = randomise(init_factors(jax.random.key(0), params, lora))
    flat = flatten_dict(params, sep="/")
    whole = unflatten_dict({path: flat[path] * 1.3 for path in flat if path.startswith(trained)}, sep="/")
    write_adapter(tmp_path, model, factors, lora, whole=whole, base="somewhere")
    changed = unflatten_dict({**flatten_dict(params), **flatten_dict(whole)})
    expected = ours(model, adapt(changed, factors, lora), kind)
    assert np.abs(expected - ours(model, adapt(params, factors, lora), kind)).max() > 0.01
    opened = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    close(logits_of(opened, kind), expected)
    again = read_adapter(tmp_path, model)[2]
    assert flatten_dict(again).keys() == flatten_dict(whole).keys()


@pytest.mark.parametrize("name", adapters.CASES)
def test_the_golden_file_is_what_peft_makes_now(name):
    stored, made = adapters.load()[name], adapters.make(name)
    assert stored.keys() == made.keys()
    for key in stored.keys() - {"config"}:
        np.testing.assert_allclose(stored[key], made[key], rtol=REMADE, atol=REMADE / 10, err_msg=key)
