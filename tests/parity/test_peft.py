"""Adapters live against the ``peft`` library: both read what the other wrote, and compute the same."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer.families import FAMILIES, model_config
from jaxformer.families.checkpoint import params_from_hf
from jaxformer.hub.kinds import abstract_params, build
from jaxformer.lora import LoraConfig, adapt, init_factors, merge, read_adapter, write_adapter
from jaxformer.models import TransformerConfig
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


@pytest.mark.parametrize("name", adapters.CASES)
def test_the_golden_file_is_what_peft_makes_now(name):
    stored, made = adapters.load()[name], adapters.make(name)
    assert stored.keys() == made.keys()
    for key in stored.keys() - {"config"}:
        np.testing.assert_allclose(stored[key], made[key], rtol=REMADE, atol=REMADE / 10, err_msg=key)
